#!/usr/bin/env bash
# Makes everything that the make targets need: .venv (ROS 2 from PyPI unless one is sourced) and the colcon build. Quick when
# nothing changed. No root. Usage: scripts/setup.sh [demo|analysis|dev]   ("demo" adds what the demo draws with, "analysis" what
# vla-evidence plans and draws with, "dev" that and tests and linters)
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
exec 9>build/.setup.lock
flock 9  # two makes at a time would build over each other

say() { printf '[setup] %s\n' "$*"; }
die() { printf '[setup] missing: %s\n' "$*" >&2; exit 1; }
quietly() { # quietly LOG COMMAND…: show the log's end only if the command fails
  local log=$1; shift
  "$@" >"$log" 2>&1 || { tail -n 25 "$log" >&2; printf '[setup] failed, whole log: %s\n' "$log" >&2; exit 1; }
}

command -v c++ >/dev/null || die "a C++ compiler (Debian and Ubuntu: apt install g++)"
command -v make >/dev/null || die "make (Debian and Ubuntu: apt install make)"

if [ -n "${ROS_DISTRO:-}" ] && [ -n "${AMENT_PREFIX_PATH:-}" ] && [ -z "${_ROS_WHEELS_BOOTSTRAP_COMPLETE:-}" ]; then
  ros=installed constraints=constraints-ros.txt
  command -v colcon >/dev/null || die "colcon (Ubuntu with ROS 2: apt install python3-colcon-common-extensions)"
  command -v cmake >/dev/null || die "cmake (Ubuntu: apt install cmake)"
else
  ros=pypi constraints=constraints.txt
  [ "$(uname -sm)" = "Linux x86_64" ] || die "an installed ROS 2 (ROS 2 wheels exist for Linux x86_64 only): source it first"
fi

python=${VLA_OTA_PYTHON:-}
if [ -z "$python" ]; then
  candidates="python3.11 python3.12 python3.13 python3"
  [ $ros = installed ] && candidates=/usr/bin/python3
  for candidate in $candidates; do
    if "$candidate" -c 'import sys, venv, ensurepip; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
    then python=$(command -v "$candidate"); break; fi
  done
fi
[ -n "$python" ] || die "Python 3.11 to 3.13 with venv (Debian and Ubuntu: apt install python3-venv); or set VLA_OTA_PYTHON"

# 1. The environment, made anew when its recipe changes.
groups="runtime"
[ $ros = pypi ] && groups="$groups ros"
case "${1:-}" in
  dev) groups="$groups dev analysis fleet learning" ;;
  analysis) groups="$groups analysis" ;;
  demo) groups="$groups demo" ;;
esac
recipe=$(cat "$constraints" requirements/*.txt scripts/setup.sh | sha256sum | cut -c1-16)
if [ ! -x .venv/bin/python ] || [ "$(cat .venv/.vla_ota_recipe 2>/dev/null)" != "$recipe $ros" ]; then
  say "making .venv with $($python --version) and ROS 2 $ros"
  rm -rf .venv
  options=""
  [ $ros = installed ] && options=--system-site-packages
  quietly build/venv.log "$python" -m venv $options .venv
  echo "$recipe $ros" >.venv/.vla_ota_recipe
fi
pip() { .venv/bin/python -m pip "$@"; }
install() { pip install --disable-pip-version-check "$@"; }
# uv installs three times as fast, from the same places as pip. Beside an installed ROS 2 it would not see apt's Python packages.
if [ $ros = pypi ] && { [ -x .venv/bin/uv ] || install -q -c "$constraints" uv >build/pip-uv.log 2>&1; }; then
  setting() { pip config get "global.$1" 2>/dev/null || true; }
  export UV_INDEX_STRATEGY=unsafe-best-match UV_COMPILE_BYTECODE=1  # as pip does: no process compiles while a robot moves
  export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$(setting index-url)}}
  export UV_INDEX=${UV_INDEX:-${PIP_EXTRA_INDEX_URL:-$(setting extra-index-url)}}
  export UV_FIND_LINKS=${UV_FIND_LINKS:-$(tr -s ' \n' ',' <<<"${PIP_FIND_LINKS:-$(setting find-links)}" | sed 's/,$//')}
  [ -n "$UV_DEFAULT_INDEX" ] || unset UV_DEFAULT_INDEX
  install() { .venv/bin/uv pip install --python .venv/bin/python --override requirements/overrides.txt "$@"; }
fi
for group in $groups; do
  [ -e ".venv/.vla_ota_$group" ] && continue
  say "installing requirements/$group.txt (log: build/pip-$group.log)"
  quietly "build/pip-$group.log" install -c "$constraints" -r "requirements/$group.txt"
  touch ".venv/.vla_ota_$group"
done

# 2. The colcon build, made again when an interface, a list of files or a package's metadata changes (Python sources are linked).
built=$( (find msg srv action launch config -type f -print0 | sort -z | xargs -0 cat; cat CMakeLists.txt package.xml setup.cfg scripts/setup.sh
          git ls-files -co --exclude-standard -- 'vla_*' 2>/dev/null || find vla_* -type f; cat .venv/.vla_ota_recipe) | sha256sum | cut -c1-16)
if [ "$(cat install/.vla_ota_built 2>/dev/null)" != "$built" ]; then
  say "building the ROS package (log: build/colcon.log)"
  [ $ros = pypi ] && export AMENT_PREFIX_PATH="$PWD/.venv" CMAKE_PREFIX_PATH="$PWD/.venv"
  export PATH="$PWD/.venv/bin:$PATH"
  export MAKEFLAGS="-j$(nproc)"  # colcon's own (-j -l) compiles one file at a time while the machine has other work
  quietly build/colcon.log colcon build --symlink-install --cmake-args \
    "-DPython3_EXECUTABLE=$PWD/.venv/bin/python" -DCMAKE_BUILD_TYPE=Release "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG" -Wno-dev
  echo "$built" >install/.vla_ota_built
fi
say "ready"
