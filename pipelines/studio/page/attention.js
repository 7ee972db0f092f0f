/** Mounts the panel into its section. */
export function mountAttention(state, root) {}
