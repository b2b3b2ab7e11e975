// The button of a query's form. The script sends a query that contains publish_batch as a POST, which the browser does
// not repeat by itself: see pages/runs.py. It does not change other queries.

const stored = document.querySelector(".pubsub-run")?.dataset.action;

/** The address that runs the form's query if the query publishes, else null. */
function target(form) {
  const sql = new FormData(form).get("sql");
  if (sql === null) return stored ?? null;
  if (!/publish_batch/i.test(sql)) return null;
  const base = new URL(form.dataset.action, document.baseURI).pathname.replace(/\/-\/query$/, "");
  return `${base}/-/pubsub/-/run`;
}

for (const form of document.querySelectorAll("form.sql[method=get]")) {
  form.dataset.action = form.getAttribute("action");
  // Datasette's editor calls submit() on a keyboard shortcut, which would send no submit event.
  form.submit = () => form.requestSubmit();
}

// The listener is on the document, so that it runs after the editor's listener has written its text into the form.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.action === undefined || event.defaultPrevented) return;
  const path = target(form);
  form.method = path === null ? "get" : "post";
  form.action = path ?? form.dataset.action;
  if (path === null) return;
  // A double click sends the form once.
  if (form.dataset.running) event.preventDefault();
  form.dataset.running = "1";
});

// The browser may restore the page from its back-forward cache, with the mark still set.
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form.sql")) delete form.dataset.running;
});
