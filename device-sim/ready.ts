import { readFileSync } from 'node:fs'
import { MusterError } from '#shared/errors'
import { layout, type Ready } from '#shared/layout'
import { isLocked } from '#shared/sqlite'

/**
 * Where the plane in a data directory is. The file outlives a plane that was killed, the lock does not: without somebody
 * who holds it, nothing is believed.
 * @throws MusterError unreachable
 */
export function readReady(data: string): Ready {
  const files = layout(data)
  const next = 'Start one with `muster up`, or add --self-contained.'
  const unreachable = (why: string, cause?: unknown) =>
    new MusterError('unreachable', `Cannot find a running plane: ${why}. ${next}`, { cause })
  let text: string
  try {
    text = readFileSync(files.ready, 'utf8')
  } catch (cause) {
    throw unreachable(`"${files.ready}" is not there`, cause)
  }
  if (!isLocked(files.lock)) throw unreachable(`the one that wrote "${files.ready}" has ended`)
  try {
    return JSON.parse(text) as Ready // `muster up` wrote it, whole
  } catch (cause) {
    throw unreachable(`"${files.ready}" is not JSON`, cause)
  }
}
