// `opencode serve`: requests are caught before OpenCode routes them. The workspace comes before the session, whoever
// asks for it (`opencode run --attach`, other clients), and clients that know no workspaces see what happens in them.
import http from "node:http"

const KEY = "__overlayrun"

export function catchRequests(host) {
  const isCaught = KEY in http.Server.prototype
  http.Server.prototype[KEY] = new Catcher(host)
  if (isCaught) return
  const emit = http.Server.prototype.emit
  http.Server.prototype.emit = function (event, request, response, ...rest) {
    const pass = () => emit.call(this, event, request, response, ...rest)
    const waiting = event === "request" ? http.Server.prototype[KEY].prepare(request, response) : undefined
    if (!waiting) return pass()
    waiting.catch((error) => console.error(error)).then(pass)
    return true
  }
}

class Catcher {
  constructor({ client, newWorkspace, ready }) {
    this.client = client
    this.newWorkspace = newWorkspace
    this.ready = ready
    this.listeners = new Set()
  }

  // What has to happen before OpenCode sees a request, if anything.
  prepare(request, response) {
    const { pathname, searchParams } = new URL(request.url, "http://localhost")
    if (searchParams.has("workspace")) return undefined
    if (request.method === "POST" && pathname === "/session") return this.#route(request)
    if (request.method === "GET" && pathname === "/event") this.#listen(response)
    const [, session] = pathname.match(/^\/session\/([^/]+)/) ?? []
    return session && this.ready(session)
  }

  async #route(request) {
    const id = await this.newWorkspace()
    request.url += `${request.url.includes("?") ? "&" : "?"}workspace=${id}`
  }

  // `/event` tells of this server alone; `opencode run --attach` would show nothing of a session elsewhere.
  #listen(response) {
    this.listeners.add(response)
    response.on("close", () => this.listeners.delete(response))
    this.subscribed ??= this.#subscribe().finally(() => (this.subscribed = undefined))
  }

  async #subscribe() {
    const { stream } = await this.client.global.event()
    for await (const { workspace, payload } of stream) {
      if (!workspace || !payload || payload.type === "sync" || payload.type?.startsWith("server.")) continue
      for (const response of this.listeners)
        if (response.headersSent) response.write(`event: message\ndata: ${JSON.stringify(payload)}\n\n`)
      if (!this.listeners.size) return
    }
  }
}
