// OpenCode's terminal half: a session that is begun here gets its branch before it exists; /overlay brings the branch home.
import { spawn } from "node:child_process"

const TYPE = "overlayrun"
const NAME = "overlayrun"
const SHOWN = 12 // files in a summary
const RESOLVE = `'${process.execPath}' run "$OVERLAYRUN_PROMPT"`

const count = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`

// How a command went. With --json `answer` tells of conflicts and of what is withheld, whatever the exit status.
function overlayrun(cwd, ...words) {
  return new Promise((resolve) => {
    const child = spawn("overlayrun", words, { cwd, stdio: ["ignore", "pipe", "pipe"] })
    let out = ""
    let complaint = ""
    child.stdout.on("data", (data) => (out += data))
    child.stderr.on("data", (data) => (complaint += data))
    child.once("error", (error) => resolve({ status: 127, complaint: error.message }))
    child.once("close", (status) => {
      try {
        resolve({ status, complaint, answer: JSON.parse(out) })
      } catch {
        resolve({ status, complaint: complaint.replace(/^overlayrun: /gm, "").trim() || `exit status ${status}` })
      }
    })
  })
}

class Desk {
  constructor(api) {
    this.api = api
    this.root = api.state.path.worktree || process.cwd()
  }

  say(message, variant = "info") {
    this.api.ui.toast({ title: NAME, message, variant, duration: variant === "error" ? 10_000 : 5_000 })
  }

  async run(...words) {
    const done = await overlayrun(this.root, ...words, "--json")
    if (!done.answer) this.say(done.complaint, "error")
    return done
  }

  // Each of these gives undefined where the user turns back.
  choose(title, options) {
    return this.#ask((answer) => this.api.ui.DialogSelect({ title, options, onSelect: (option) => answer(option.value) }))
  }

  confirm(title, message) {
    return this.#ask((answer) => this.api.ui.DialogConfirm({ title, message, onConfirm: () => answer(true) }))
  }

  #ask(render) {
    const { dialog } = this.api.ui
    return new Promise((resolve) => {
      const answer = (value) => {
        resolve(value)
        dialog.clear()
      }
      dialog.replace(() => render(answer), () => resolve(undefined))
    })
  }

  async workspace() {
    const { name, params } = this.api.route.current
    const id = name === "session" ? this.api.state.session.get(params.sessionID)?.workspaceID : undefined
    const all = id ? ((await this.api.client.experimental.workspace.list()).data ?? []) : []
    return all.find((each) => each.id === id && each.type === TYPE)
  }
}

async function open(desk) {
  const workspace = await desk.workspace()
  if (!workspace) return desk.say("This session has no branch of its own.", "warning")
  const { branch } = workspace
  await overlayrun(desk.root, "snapshot", branch)
  const { answer } = await desk.run("diff", branch, "--stat")
  if (!answer) return
  const files = answer.files.map(({ path, status, insertions, deletions }) => {
    return { title: `${status} ${path}`, value: "diff", category: "Changes", footer: `+${insertions ?? "-"} -${deletions ?? "-"}` }
  })
  const more = files.length > SHOWN ? [{ title: `${files.length - SHOWN} more`, value: "diff", category: "Changes" }] : []
  const summary = `${branch}: ${count(files.length, "file")}, +${answer.insertions} -${answer.deletions}`
  const chosen = await desk.choose(summary, [
    { title: "Merge into its target", value: "merge", category: "Branch" },
    { title: "Approve for the reconciler", value: "approve", category: "Branch" },
    { title: "Discard branch and session", value: "discard", category: "Branch" },
    ...files.slice(0, SHOWN),
    ...more,
  ])
  await { merge, approve, discard, diff: (one) => one.say(`overlayrun diff ${branch}`) }[chosen]?.(desk, branch, workspace)
}

async function approve(desk, branch) {
  const { status, complaint } = await overlayrun(desk.root, "approve", branch)
  desk.say(status ? complaint : `${branch} is approved: overlayrun reconcile lands it`, status ? "error" : "success")
}

async function merge(desk, branch) {
  const [result, ...options] = await landed(desk, branch)
  if (!result?.conflicts.length) return
  const paths = result.conflicts.flatMap(({ paths }) => paths ?? []).map(({ path }) => path ?? "")
  const where = [...new Set(paths)].slice(0, SHOWN).join(", ")
  const wanted = await desk.confirm(
    `${branch} conflicts with ${result.target}`,
    `${where}\n\nLet a session of its own merge them? It reads what both sides say, and lands what it leaves without a conflict.`,
  )
  if (!wanted) return
  desk.say("A merging session is at work.")
  await landed(desk, branch, "--resolve", RESOLVE, ...options)
}

// Merge, and tell how it went: the result of the target, and the options that it took.
async function landed(desk, branch, ...options) {
  const { answer } = await desk.run("merge", branch, ...options)
  const result = answer?.targets[0]
  if (!result) return []
  const [withheld] = result.withheld
  if (withheld && !options.includes("--yes-exec")) {
    const files = (withheld.carriers ?? []).map(({ path }) => path ?? "").slice(0, SHOWN).join("\n")
    const agreed = await desk.confirm("These files run code on your machine when opened or built", files)
    return agreed ? landed(desk, branch, ...options, "--yes-exec") : []
  }
  if (result.landed.length) desk.say(`${branch} is merged into ${result.target}`, "success")
  if (result.failed.length) desk.say(`${branch} goes back: overlayrun log --checks ${branch}`, "warning")
  if (result.waiting) desk.say("Merged; a file of yours is in the way of the new ones: overlayrun queue", "warning")
  if (!result.landed.length && !result.conflicts.length && !result.failed.length) desk.say("There is nothing to merge.")
  if (result.conflicts.length && options.includes("--resolve"))
    desk.say(`${branch} still conflicts: overlayrun queue`, "warning")
  return [result, ...options]
}

async function discard(desk, branch, workspace) {
  const sure = await desk.confirm("Discard for good?", `${branch}, its snapshots, and the sessions that worked in it`)
  if (!sure) return
  desk.api.route.navigate("home")
  await desk.api.client.experimental.workspace.remove({ id: workspace.id })
  const { status, complaint } = await overlayrun(desk.root, "rm", "--force", branch)
  desk.say(status ? complaint : `${branch} is discarded`, status ? "error" : "success")
}

// The session's workspace comes first: whatever begins a session here (a prompt, /new, a shell command) asks this.
function giveBranches({ client }, type) {
  const create = client.session.create.bind(client.session)
  client.session.create = async (wanted, ...rest) => {
    if (wanted?.workspace || wanted?.parentID) return create(wanted, ...rest)
    const made = await client.experimental.workspace.create({ type, branch: null })
    return made.error ? made : create({ ...wanted, workspace: made.data.id }, ...rest)
  }
}

async function tui(api) {
  const sessions = process.env.OVERLAYRUN_SESSIONS
  const isInside = Boolean(process.env.OVERLAYRUN_SOCKET)
  if (isInside ? sessions !== "own" : sessions === "off") return
  const isSet = (name) => /^(1|true)$/i.test(process.env[name] ?? "")
  if (!isSet("OPENCODE_EXPERIMENTAL_WORKSPACES") && !isSet("OPENCODE_EXPERIMENTAL")) {
    const message = "Sessions work in your own tree: open a new terminal, or export OPENCODE_EXPERIMENTAL_WORKSPACES=1"
    api.ui.toast({ title: NAME, message, variant: "warning", duration: 10_000 })
    return
  }
  giveBranches(api, isInside ? `${TYPE}-local` : TYPE)
  if (isInside) return
  const desk = new Desk(api)
  const command = { title: "Branch: changes, merge, approve, discard", category: "Overlayrun", run: () => open(desk) }
  api.keymap.registerLayer({ commands: [{ ...command, name: "overlayrun.branch", namespace: "palette", slashName: "overlay" }] })
}

export default { id: "overlayrun", tui }
