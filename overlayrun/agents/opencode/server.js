// OpenCode's server half. On the host: every new session gets a branch of its own. In a workspace: snapshots with words.
// Written for OpenCode 1.18 and its experimental workspaces (OPENCODE_EXPERIMENTAL_WORKSPACES=1).
import { inWorkspace } from "./inside.js"
import { onHost } from "./host.js"

export default { id: "overlayrun", server: (input) => (process.env.OVERLAYRUN_SOCKET ? inWorkspace() : onHost(input)) }
