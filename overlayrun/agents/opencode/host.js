// The host's side: workspaces for OpenCode, made by `overlayrun hub`, and a workspace for every session before its first turn.
import { spawn } from "node:child_process"
import { catchRequests } from "./requests.js"

const TYPE = "overlayrun"
const SYNC_PATIENCE = 5_000 // ms
const PATIENCE = 60_000 // ms; without a limit fetch may hang for ever on a port that is just opening

const isSet = (name) => /^(1|true)$/i.test(process.env[name] ?? "")
const hasWorkspaces = () => isSet("OPENCODE_EXPERIMENTAL_WORKSPACES") || isSet("OPENCODE_EXPERIMENTAL")

class Hub {
  constructor(root) {
    this.root = root
  }

  url() {
    return (this.started ??= this.#start().catch((error) => {
      this.started = undefined
      throw error
    }))
  }

  #start() {
    const again = this.last ? ["--again", this.last] : []
    // Its standard input is our life: the kernel closes it, whatever ends us.
    const child = spawn("overlayrun", ["hub", "--opencode", process.execPath, ...again], {
      cwd: this.root,
      stdio: ["pipe", "pipe", "pipe"],
      detached: true,
    })
    let served = false
    // OpenCode stops listening to a workspace whose address it finds dead: what was killed is there again at once.
    child.once("exit", () => {
      this.started = undefined
      if (served) this.lost?.(this.url())
    })
    return new Promise((resolve, reject) => {
      let told = ""
      let complaint = ""
      setTimeout(() => reject(new Error("overlayrun hub does not answer")), PATIENCE).unref()
      child.stderr.on("data", (data) => (complaint = (complaint + data).slice(-500)))
      child.once("error", (error) => reject(new Error(`overlayrun can't be started: ${error.message}`)))
      child.once("exit", () => reject(new Error(complaint.trim() || "overlayrun hub ended")))
      child.stdout.on("data", (data) => {
        told += data
        if (!told.includes("\n")) return
        served = true
        this.last = JSON.parse(told.split("\n")[0]).url
        resolve(this.last)
      })
    })
  }

  place(info) {
    return `${info.id}/${encodeURIComponent(info.branch)}`
  }

  async ask(words) {
    const answer = await fetch(`${await this.url()}/${words}`, { signal: AbortSignal.timeout(PATIENCE) })
    return answer.json()
  }
}

// One hub for each working tree: OpenCode makes a plugin once a directory, and again when it reloads.
const hubs = new Map()

function adapter(hub, root, projectID) {
  const short = (branch) => branch.replace(/^overlay\//, "")
  const describe = (branch) => ({ branch, name: short(branch), directory: root, extra: null })
  return {
    name: "Overlayrun branch",
    description: "A copy-on-write branch of this repository, at its own path",
    async configure(info) {
      return { ...info, ...describe(info.branch ?? (await hub.ask("new")).branch) }
    },
    async create(info) {
      await hub.ask(`start/${hub.place(info)}`)
    },
    // The branch stays, with all that is not merged yet: `overlayrun rm` asks.
    async remove(info) {
      await hub.ask(`end/${hub.place(info)}`)
    },
    async target(info) {
      return { type: "remote", url: `${await hub.url()}/w/${hub.place(info)}` }
    },
    async list() {
      return (await hub.ask("list")).map((branch) => ({ type: TYPE, projectID, ...describe(branch) }))
    },
  }
}

export async function onHost({ client, worktree, project, experimental_workspace }) {
  if (process.env.OVERLAYRUN_SESSIONS === "off" || !hasWorkspaces() || !worktree || worktree === "/") return {}
  if (!hubs.has(worktree)) hubs.set(worktree, new Hub(worktree))
  const hub = hubs.get(worktree)
  experimental_workspace.register(TYPE, adapter(hub, worktree, project.id))
  // Awaited while OpenCode waits for its plugins, so that no session waits for it.
  await hub.url().catch((error) => console.error(`overlayrun: ${error.message}`))

  const call = async (url, body, method = "POST") => {
    const answer = await client._client.request({ method, url, body, headers: { "Content-Type": "application/json" } })
    if (answer.error) throw new Error(`overlayrun: ${JSON.stringify(answer.error).slice(0, 500)}`)
    return answer.data
  }
  const newWorkspace = async () => (await call("/experimental/workspace", { type: TYPE, branch: null })).id

  // A session that came to be without one is moved to one; what is asked of it meanwhile waits.
  const moves = new Map()
  const move = (id) => {
    if (!moves.has(id)) {
      const moving = newWorkspace().then((workspace) =>
        call("/experimental/workspace/warp", { id: workspace, sessionID: id }),
      )
      moving.catch(() => undefined)
      moves.set(id, moving)
    }
    return moves.get(id)
  }
  // Only the terminal asks for this by itself: without it OpenCode takes no workspace of before for connected.
  let connecting
  const connect = async () => {
    await call("/sync/start")
    const end = Date.now() + SYNC_PATIENCE
    while (Date.now() < end) {
      const states = await call("/experimental/workspace/status", undefined, "GET")
      const connected = new Set(states.filter(({ status }) => status === "connected").map((each) => each.workspaceID))
      const known = await call("/experimental/workspace", undefined, "GET")
      if (known.every(({ id }) => connected.has(id))) return
      await new Promise((done) => setTimeout(done, 50))
    }
  }
  hub.lost = (again) => (connecting = again.then(connect).catch((error) => console.error(error)))
  const ready = (id) => moves.get(id) ?? (connecting ??= connect().catch((error) => console.error(error)))
  catchRequests({ client, newWorkspace, ready })

  // The first turn of a session never runs in the user's own tree: better it fails, with a word what to do.
  const keepOut = async (id) => {
    const moving = moves.get(id)
    await moving
    const session = (await client.session.get({ path: { id } })).data
    if (!session || session.parentID) return
    const hasMessages = async () => (await client.session.messages({ path: { id }, query: { limit: 1 } })).data?.length
    // In a workspace of another kind, or older than all this, or brought back here by the user: his choice.
    if (session.workspaceID ? !moving : await hasMessages()) return
    await (moving ?? move(id))
    throw new Error("overlayrun: this session has a branch of its own now; nothing was done yet, send it again")
  }
  return {
    async event({ event }) {
      if (event.type !== "session.created") return
      const { id, parentID, workspaceID } = event.properties.info
      if (!parentID && !workspaceID) move(id)
    },
    "chat.message": ({ sessionID }) => keepOut(sessionID),
    "shell.env": async ({ sessionID }) => sessionID && keepOut(sessionID),
  }
}
