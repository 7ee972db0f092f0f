/** Mounts the panel into its section. */
export function mountVersus(state, root, api) {}
