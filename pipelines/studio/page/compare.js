/** Mounts the panel into its section. */
export function mountCompare(state, root) {}
