/**
 * Says when sockets have ended, whoever has the time to look: asks the kernel's table of TCP connections (Linux:
 * /proc/net/tcp, proc(5)). A process of its own, because a look takes some 50 ms, and goes before others where it may.
 */
import { readFileSync } from 'node:fs'
import { setPriority } from 'node:os'

/** Notes the sockets that are connected to the port, then says when none of them is any more. */
export type WatchAsk = { readonly note: number } | 'watch'

export type WatchSaid = { readonly type: 'noted' } | { readonly type: 'ended'; readonly at: number }

/** `st` of a connection that both sides hold open. */
const ESTABLISHED = '01'
const BEFORE_OTHERS = -10

/** Inodes of the sockets of this machine that are connected to the port and have not been told of an end. */
function connectedTo(port: number): Set<string> {
  const remote = `:${port.toString(16).toUpperCase().padStart(4, '0')}`
  const inodes = new Set<string>()
  for (const line of readFileSync('/proc/net/tcp', 'utf8').split('\n')) {
    if (!line.includes(`${remote} ${ESTABLISHED} `)) continue
    const inode = line.trim().split(/\s+/)[9] ?? '0'
    if (inode !== '0') inodes.add(inode)
  }
  return inodes
}

try {
  setPriority(BEFORE_OTHERS)
} catch {
  // Only root may: then it looks later.
}
let port = 0
let noted = new Set<string>()
process.on('message', (ask: WatchAsk) => {
  if (ask === 'watch') return watch()
  port = ask.note
  noted = connectedTo(port)
  process.send?.({ type: 'noted' } satisfies WatchSaid)
})
process.once('disconnect', () => process.exit())
process.send?.({ type: 'ready' })

function watch(): void {
  const now = connectedTo(port)
  if ([...noted].some((inode) => now.has(inode))) setImmediate(watch)
  else process.send?.({ type: 'ended', at: Date.now() } satisfies WatchSaid)
}
