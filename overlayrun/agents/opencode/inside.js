// A workspace's side: a snapshot after each tool that may change something and after each turn, in the agent's own words.
import net from "node:net"
import path from "node:path"

const LOOKING = new Set(
  "read grep glob list ls webfetch websearch codesearch todoread todowrite question skill lsp task".split(" "),
)
const PATIENCE = 10_000 // ms; what fails costs the agent nothing
const LONGEST = { prompt: 4_000, said: 8_000 } // characters that a run takes

const TREES = "/run/overlayrun/trees/" // where further branches of this run are shown

// Ask the run that watches over this workspace; {} where it does not answer.
function ask(request) {
  return new Promise((resolve) => {
    let text = ""
    const socket = net.connect(process.env.OVERLAYRUN_SOCKET)
    socket.setTimeout(PATIENCE, () => socket.destroy())
    socket.on("connect", () => socket.write(JSON.stringify(request) + "\n"))
    socket.on("data", (data) => (text += data))
    socket.on("error", () => undefined)
    socket.on("close", () => resolve(text.endsWith("\n") ? JSON.parse(text) : {}))
  })
}

// OpenCode's `local` type: further branches in the same sandbox and the same OpenCode, in a fraction of a second. Their
// paths are others than the repository's, so that it is for who asks for it.
const furtherBranches = {
  name: "Further branch of this run",
  description: "A copy-on-write branch beside this one, in the same sandbox",
  async configure(info) {
    const wanted = info.branch ? { branch: info.branch } : {}
    const { branch, path: directory, error, hint } = await ask({ op: "open", ...wanted })
    if (!branch) throw new Error(`overlayrun: ${error ?? "the run does not answer"} ${hint ?? ""}`)
    return { ...info, branch, directory, name: branch.replace(/^overlay\//, ""), extra: null }
  },
  create: async () => undefined,
  // It stays as a branch; only its tree is not shown any more.
  async remove({ directory }) {
    await ask({ op: "close", path: directory })
  },
  // In a later run it is opened again: that gives the same path.
  async target({ branch, directory }) {
    await ask({ op: "open", branch })
    return { type: "local", directory }
  },
}

// One snapshot at a time; tools that end while one is taken share the next. place: of which tree.
class Snapshots {
  #last = Promise.resolve()
  #waiting
  #place

  constructor(place) {
    this.#place = place
  }

  take(account) {
    if (this.#waiting) {
      const subject = [this.#waiting.account.subject, account.subject].filter(Boolean).join(", ")
      Object.assign(this.#waiting.account, account, { subject })
      return this.#last
    }
    const next = (this.#waiting = { account: { ...account } })
    this.#last = this.#last.then(() => {
      this.#waiting = undefined
      return ask({ op: "snapshot", account: next.account, ...this.#place })
    })
    return this.#last
  }

  end() {
    return this.#last
  }
}

export async function inWorkspace({ directory, experimental_workspace }) {
  const isFurther = directory.startsWith(TREES)
  const place = isFurther ? { path: directory } : {}
  // An adapter is the project's, the last one wins: that of a further branch would stack on it.
  const isHub = !isFurther && !process.env.OPENCODE_WORKSPACE_ID
  if (isHub) experimental_workspace.register("overlayrun-local", furtherBranches)
  const snapshots = new Snapshots(place)
  const accounts = new Map()
  const parents = new Map() // sub-agents work for the session that the user sees
  const account = (id) => {
    if (parents.has(id)) return account(parents.get(id))
    if (!accounts.has(id)) accounts.set(id, { agent: "opencode", session: id })
    return accounts.get(id)
  }
  const shown = (title) => (path.isAbsolute(title) ? path.relative(directory, title) : title)

  const heard = {
    "session.created": ({ info }) => heard["session.updated"]({ info }),
    "session.updated": ({ info }) => {
      if (info.parentID) parents.set(info.id, info.parentID)
      else account(info.id).title = info.title
    },
    "message.part.updated": ({ part }) => {
      if (part.type !== "text" || !part.time?.end || !accounts.has(part.sessionID)) return
      account(part.sessionID).said = part.text.slice(0, LONGEST.said)
    },
    "session.idle": async ({ sessionID }) => {
      if (!accounts.has(sessionID)) return
      await snapshots.take(account(sessionID))
      await ask({ op: "session", account: account(sessionID), ...place })
    },
  }
  return {
    async "chat.message"({ sessionID, model }, { parts }) {
      const words = parts.filter((part) => part.type === "text" && !part.synthetic).map((part) => part.text)
      const mine = account(sessionID)
      if (parents.has(sessionID) || !words.length) return
      delete mine.said
      mine.prompt = words.join("\n").slice(0, LONGEST.prompt)
      if (model) mine.model = `${model.providerID}/${model.modelID}`
      await ask({ op: "session", account: mine, ...place })
    },
    async "tool.execute.after"({ tool, sessionID }, { title }) {
      if (LOOKING.has(tool)) return
      await snapshots.take({ ...account(sessionID), tool, subject: title ? `${tool}: ${shown(title)}` : tool })
    },
    event: async ({ event }) => heard[event.type]?.(event.properties),
    dispose: () => snapshots.end(),
  }
}
