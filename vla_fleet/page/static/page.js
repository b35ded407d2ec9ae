// SPDX-License-Identifier: Apache-2.0
// Keeps an open page up to date, and asks before something is done. Without this file the page works too: it is read anew by hand,
// and a question is a page of its own.
"use strict";

const EVERY_MS = 2000, SLOWEST_MS = 30000, GIVE_UP_MS = 10000;
const connection = document.getElementById("connection"), fresh = document.getElementById("fresh");
const shown = new Map(); // region → what it was last given: its own markup changes when somebody opens something in it
let tag = null, wait = EVERY_MS, timer = null, busy = false, failed = false;

function clock() {
  return new Date().toISOString().slice(11, 19);
}

function replace(old, now) {
  const selection = getSelection();
  if (!selection.isCollapsed && old.contains(selection.anchorNode)) return false; // somebody is copying something
  const focus = old.contains(document.activeElement) ? document.activeElement : null;
  const place = focus && (focus.id ? `#${CSS.escape(focus.id)}` : focus.href ? `[href="${CSS.escape(focus.getAttribute("href"))}"]` : null);
  const open = [...old.querySelectorAll("details[open][id]")].map((details) => details.id);
  const scrolled = [...old.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
  old.innerHTML = now.innerHTML;
  open.forEach((id) => document.getElementById(id)?.setAttribute("open", ""));
  old.querySelectorAll(".scroll").forEach((box, index) => { box.scrollLeft = scrolled[index] ?? 0; });
  if (place) old.querySelector(place)?.focus({ preventScroll: true });
  return true;
}

// Puts what has changed in place; false: something of it has to wait.
function show(text) {
  let all = true;
  const now = new DOMParser().parseFromString(text, "text/html");
  for (const old of document.querySelectorAll("[data-live]")) {
    const other = now.getElementById(old.id);
    if (!other || other.innerHTML === shown.get(old.id)) continue;
    if (other.innerHTML === old.innerHTML || replace(old, other)) shown.set(old.id, other.innerHTML);
    else all = false;
  }
  // a region that the page did not have before, or has no longer: the first robot has come, a plot has begun
  const ids = (page) => [...page.querySelectorAll("[data-live]")].map((region) => region.id).join();
  if (ids(now) !== ids(document)) {
    if (document.querySelector("dialog[open]")) return false;
    location.reload();
  }
  return all;
}

function trouble(text) {
  if (!failed) {
    connection.textContent = text;
    connection.className = "bad";
  }
  failed = true;
  wait = Math.min(2 * wait, SLOWEST_MS);
}

function well() {
  fresh.textContent = `Up to date at ${clock()}.`;
  if (failed) {
    connection.textContent = "The server answers again.";
    connection.className = "good";
    setTimeout(() => { if (!failed) connection.textContent = ""; }, 5000);
  }
  failed = false;
  wait = EVERY_MS;
}

async function refresh() {
  const since = fresh.textContent.match(/\d\d:\d\d:\d\d/)?.[0] ?? clock();
  try {
    const headers = { "X-Live": "1", ...(tag ? { "If-None-Match": tag } : {}) };
    const answer = await fetch(location.href, { headers, signal: AbortSignal.timeout(GIVE_UP_MS) });
    if (answer.status === 401) return location.reload(); // signed out: the server asks for a key
    if (answer.status === 200) {
      tag = show(await answer.text()) ? answer.headers.get("ETag") : null;
    } else if (answer.status !== 304) {
      return trouble(`The server answers with an error (${answer.status}). What you see is from ${since}.`);
    }
    well();
  } catch {
    trouble(`The server does not answer. What you see is from ${since}; it is tried again.`);
  }
}

async function turn() {
  if (busy) return;
  busy = true;
  clearTimeout(timer);
  if (!document.hidden) await refresh();
  busy = false;
  timer = setTimeout(turn, wait);
}

const dialog = document.getElementById("dialog");

async function ask(href) {
  try {
    const answer = await fetch(href);
    const form = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("form.confirm");
    if (!form) return location.assign(href); // it says why not
    dialog.replaceChildren(form);
    dialog.showModal();
  } catch {
    trouble("The server does not answer; nothing was done.");
  }
}

if (dialog) {
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-dialog]");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      ask(link.href);
    } else if (dialog.open && (event.target.closest("[data-close]") || event.target === dialog)) {
      event.preventDefault();
      dialog.close();
    }
  });
  dialog.addEventListener("submit", () => { dialog.querySelector("button").disabled = true; });
}

if (document.querySelector("[data-live]")) {
  document.addEventListener("visibilitychange", () => { if (!document.hidden) turn(); });
  addEventListener("online", turn);
  fresh.textContent = `Up to date at ${clock()}.`;
  timer = setTimeout(turn, EVERY_MS);
}
