
// The page's transport: every request carries the token, which the browser had behind the "#" of the address.
const KEY = "tuning-probes-token";
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem(KEY, given);
  history.replaceState(null, "", location.pathname); // out of sight, and out of the history
}

async function post(request) {
  let reply;
  try {
    reply = await fetch("/ask", {
      method: "POST",
      headers: { "Authorization": `Bearer ${sessionStorage.getItem(KEY) ?? ""}`, "Content-Type": "application/json" },
      body: JSON.stringify(request),
    });
  } catch {
    return { error: "The server does not answer. Is `probes view` still running?" };
  }
  if (reply.status === 401) return { error: "This page has no valid token. Open the address that `probes view` printed." };
  if (!reply.ok) return { error: `The server failed (${reply.status}): ${(await reply.text()).slice(0, 300)}` };
  return reply.json();
}

mount(document.getElementById("view"), post, { reports: true });
