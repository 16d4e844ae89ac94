// Update the page: request it again and apply the differences.
"use strict";
(() => {
  const EVERY = 2000, TIMEOUT = 5000; // milliseconds
  const $ = (id) => document.getElementById(id);
  let lastGood = Date.now(), lastSeen = "";

  const clock = (at) => `${new Date(at).toISOString().slice(11, 19)} UTC`; // as in the logs

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

  async function update() {
    const ending = new AbortController();
    const timer = setTimeout(() => ending.abort(), TIMEOUT);
    try {
      const answer = await fetch(location.href, { cache: "no-store", signal: ending.signal });
      if (!answer.ok) throw new Error(`the service answered ${answer.status}`);
      const text = await answer.text();
      const seen = text.slice(text.indexOf("<main"));
      if (seen !== lastSeen) take(text); // no work if nothing changed
      lastSeen = seen;
      lastGood = Date.now();
      say("live");
    } catch (error) {
      say("lost");
    } finally {
      clearTimeout(timer);
    }
  }

  function take(text) {
    const next = new DOMParser().parseFromString(text, "text/html");
    const before = states();
    morph($("content"), next.getElementById("content"));
    document.title = next.title;
    const news = [...states()].filter(([name, is]) => before.get(name) !== is);
    if (news.length) $("news").textContent = news.map(([name, is]) => `${name} is ${is}`).join(", ");
  }

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
