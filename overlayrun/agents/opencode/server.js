// OpenCode's server half. On the host: every new session gets a branch of its own. In a workspace: snapshots with words.
// Written for OpenCode 1.18 and its experimental workspaces (OPENCODE_EXPERIMENTAL_WORKSPACES=1).
import { inWorkspace } from "./inside.js"
import { onHost } from "./host.js"

// A run brings this file, and the user's own configuration may name it too: once a directory is enough.
const loaded = (globalThis.__overlayrun ??= new Set())

async function server(input) {
  const { directory } = input
  if (loaded.has(directory)) return {}
  loaded.add(directory)
  const hooks = await (process.env.OVERLAYRUN_SOCKET ? inWorkspace(input) : onHost(input))
  const dispose = async () => {
    loaded.delete(directory)
    await hooks.dispose?.()
  }
  return { ...hooks, dispose }
}

export default { id: "overlayrun", server }
