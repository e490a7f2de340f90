import type { RefusalView } from '#shared/api'
import { formatWhen } from './duration.ts'
import { table } from './table.ts'

/** The last refusals as a titled table; nothing when there were none. */
export function refusalLines(refusals: readonly RefusalView[], now: number): string[] {
  if (refusals.length === 0) return []
  const rows = refusals.map(({ at, code, evidence, address, by }) => [
    formatWhen(at, now),
    code,
    address,
    by,
    Object.entries(evidence)
      .map(([name, value]) => `${name}=${value}`)
      .join(' '),
  ])
  return ['', 'Last refusals', table(['WHEN', 'CODE', 'ADDRESS', 'BY', 'EVIDENCE'], rows)]
}
