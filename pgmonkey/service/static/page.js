// Update the page: request it again and apply the differences.
"use strict";
(() => {
  const EVERY = 2000, TIMEOUT = 5000, TYPING = 150; // milliseconds
  const $ = (id) => document.getElementById(id);
  let lastGood = Date.now(), lastSeen = "", asking = null, typed = 0;

  const clock = (at) => `${new Date(at).toISOString().slice(0, 19).replace("T", " ")} UTC`; // as in the logs

  function same(a, b) {
    return a.nodeType === b.nodeType && a.nodeName === b.nodeName && (a.id || "") === (b.id || "");
  }

  // The nodes are kept, so that focus, selection and scroll position are, too.
  function morph(now, next) {
    if (now.nodeType !== Node.ELEMENT_NODE) {
      if (now.nodeValue !== next.nodeValue) now.nodeValue = next.nodeValue;
      return;
    }
    const kept = now.nodeName === "DETAILS" ? "open" : null; // the reader's own choice
    for (const { name } of [...now.attributes])
      if (name !== kept && !next.hasAttribute(name)) now.removeAttribute(name);
    for (const { name, value } of next.attributes)
      if (name !== kept && now.getAttribute(name) !== value) now.setAttribute(name, value);
    let place = now.firstChild;
    for (const wanted of [...next.childNodes]) {
      let found = place;
      if (found && !same(found, wanted)) {
        while (found && !same(found, wanted)) found = wanted.id ? found.nextSibling : null;
      }
      if (found) {
        if (wanted.id) while (place !== found) { const gone = place; place = place.nextSibling; gone.remove(); }
        morph(found, wanted);
        place = found.nextSibling;
      } else {
        now.insertBefore(document.importNode(wanted, true), place);
      }
    }
    while (place) { const gone = place; place = place.nextSibling; gone.remove(); }
  }

  const states = () =>
    new Map([...document.querySelectorAll("[data-name]")].map((e) => [e.dataset.name, e.dataset.state]));

  // Only the last question counts: what is typed meanwhile asks another one.
  async function update() {
    asking?.abort();
    const mine = asking = new AbortController();
    const timer = setTimeout(() => mine.abort(), TIMEOUT);
    try {
      const answer = await fetch(location.href, { cache: "no-store", signal: mine.signal });
      if (!answer.ok) throw new Error(`the service answered ${answer.status}`);
      const text = await answer.text();
      if (mine !== asking) return;
      const seen = text.slice(text.indexOf("<main"));
      if (seen !== lastSeen) take(text); // no work if nothing changed
      lastSeen = seen;
      lastGood = Date.now();
      say("live");
    } catch (error) {
      if (mine === asking) say("lost");
    } finally {
      clearTimeout(timer);
    }
  }

  function take(text) {
    const next = new DOMParser().parseFromString(text, "text/html");
    const before = states(), title = document.querySelector("h1").textContent;
    morph($("content"), next.getElementById("content"));
    document.title = next.title;
    // What comes into view by a search is no news, but the title counts databases out of view, too.
    const news = [...states()].filter(([name, is]) => before.has(name) && before.get(name) !== is);
    const now = document.querySelector("h1").textContent;
    if (news.length) $("news").textContent = news.map(([name, is]) => `${name} is ${is}`).join(", ");
    else if (now !== title) $("news").textContent = now;
  }

  // The service searches, so that a thousand databases need not be here.
  function find() {
    clearTimeout(typed);
    const query = new URLSearchParams(new FormData($("search")));
    for (const [key, value] of [...query]) if (!value) query.delete(key);
    history.replaceState(null, "", `${location.pathname}${String(query) && "?"}${query}`);
    update();
  }
  document.addEventListener("input", (event) => {
    if (event.target.form !== $("search")) return;
    clearTimeout(typed);
    typed = setTimeout(find, TYPING);
  });
  document.addEventListener("submit", (event) => { event.preventDefault(); find(); });

  function say(contact) {
    const changed = $("contact").dataset.contact !== contact;
    $("contact").dataset.contact = contact;
    document.body.classList.toggle("is-lost", contact === "lost");
    if (contact === "live") {
      $("contact-text").textContent = `Live, ${clock(lastGood)}`;
      if (changed) $("lost").textContent = "";
    } else {
      $("contact-text").textContent = "Lost contact";
      if (changed)
        $("lost").textContent = `Lost contact with the service at ${clock(lastGood)}. The page shows that moment; trying again.`;
    }
  }

  async function run() {
    for (;;) {
      await new Promise((go) => setTimeout(go, EVERY));
      if (!document.hidden) await update();
    }
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden) update(); });
  say("live");
  run();
})();
