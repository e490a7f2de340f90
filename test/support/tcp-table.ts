/** What the kernel knows of TCP connections, whoever has the time to look (Linux: /proc/net/tcp, proc(5)). */
import { readFile } from 'node:fs/promises'

/** `st` of a connection that both sides hold open. */
const ESTABLISHED = '01'

/** Sockets of this machine that are connected to the port and have not been told of an end, by inode. */
export async function establishedTo(port: number): Promise<Set<string>> {
  const remote = `:${port.toString(16).toUpperCase().padStart(4, '0')}`
  const tables = await Promise.all(
    ['tcp', 'tcp6'].map((table) => readFile(`/proc/net/${table}`, 'utf8').catch(() => '')),
  ) // no IPv6
  const inodes = new Set<string>()
  for (const line of tables.join('\n').split('\n')) {
    const [, , peer = '', state, , , , , , inode = '0'] = line.trim().split(/\s+/)
    if (state === ESTABLISHED && peer.endsWith(remote) && inode !== '0') inodes.add(inode)
  }
  return inodes
}

/** Resolves when none of these sockets is connected any more. */
export async function allEnded(port: number, inodes: ReadonlySet<string>): Promise<void> {
  for (;;) {
    const now = await establishedTo(port)
    if (![...inodes].some((inode) => now.has(inode))) return
  }
}
