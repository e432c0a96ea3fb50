"use strict";
// Refreshes the numbers: every few seconds the page is fetched again, and its parts with data-live
// take the place of the old ones. A part that holds the focus is left alone. Without this script
// the page is the same, and a reload refreshes it.
const EVERY = 5000;

async function refresh() {
  const parts = document.querySelectorAll("[data-live][id]");
  if (document.hidden || parts.length === 0) return;
  const answer = await fetch(location.href, { credentials: "same-origin" });
  if (answer.redirected) return location.reload();
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const old of parts) {
    const fresh = page.getElementById(old.id);
    if (fresh && !old.contains(document.activeElement) && !fresh.isEqualNode(old)) {
      old.replaceWith(fresh);
    }
  }
}

setInterval(() => refresh().catch(() => {}), EVERY);
