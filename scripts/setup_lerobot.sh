#!/usr/bin/env bash
# Makes .venv-lerobot, the workers' interpreter of `make test-lerobot`: LeRobot pins another torch and numpy than the node has, so
# it is never in .venv. About 8 GB, since LeRobot's torch brings CUDA. Quick when nothing changed. After scripts/setup.sh dev.
set -euo pipefail
cd "$(dirname "$0")/.."
exec 9>build/.setup.lock
flock 9

recipe=$(cat requirements/lerobot/*.txt scripts/setup_lerobot.sh | sha256sum | cut -c1-16)
[ "$(cat .venv-lerobot/.vla_ota_recipe 2>/dev/null)" != "$recipe" ] || exit 0
echo "[setup] making .venv-lerobot (log: build/lerobot.log)"
rm -rf .venv-lerobot
.venv/bin/python -m venv .venv-lerobot
install=(.venv-lerobot/bin/python -m pip install --disable-pip-version-check)
if [ -x .venv/bin/uv ]; then # from the same places as pip
  setting() { .venv/bin/python -m pip config get "global.$1" 2>/dev/null || true; }
  export UV_INDEX_STRATEGY=unsafe-best-match
  export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$(setting index-url)}}
  export UV_INDEX=${UV_INDEX:-${PIP_EXTRA_INDEX_URL:-$(setting extra-index-url)}}
  export UV_FIND_LINKS=${UV_FIND_LINKS:-$(tr -s ' \n' ',' <<<"${PIP_FIND_LINKS:-$(setting find-links)}" | sed 's/,$//')}
  [ -n "$UV_DEFAULT_INDEX" ] || unset UV_DEFAULT_INDEX
  install=(.venv/bin/uv pip install --python .venv-lerobot/bin/python)
fi
"${install[@]}" -c requirements/lerobot/constraints.txt -r requirements/lerobot/requirements.txt >build/lerobot.log 2>&1 || {
  tail -n 25 build/lerobot.log >&2
  echo "[setup] failed, whole log: build/lerobot.log" >&2
  exit 1
}
echo "$recipe" >.venv-lerobot/.vla_ota_recipe
