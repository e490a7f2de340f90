import type { RefusalView } from '#shared/api'
import { formatWhen } from './duration.ts'
import { table } from './table.ts'

/** The last refusals as a titled table; nothing when there were none. */
export function refusalLines(
  refusals: readonly RefusalView[],
  { now, ofOneDevice }: { readonly now: number; readonly ofOneDevice: boolean },
): string[] {
  if (refusals.length === 0) return []
  const rows = refusals.map(({ at, code, device, evidence, address, by }) => [
    formatWhen(at, now),
    code,
    ...(ofOneDevice ? [] : [device ?? '-']),
    address,
    by,
    Object.entries(evidence)
      .map(([name, value]) => `${name}=${value}`)
      .join(' '),
  ])
  const names = ['WHEN', 'CODE', ...(ofOneDevice ? [] : ['DEVICE']), 'ADDRESS', 'BY', 'EVIDENCE']
  return ['', 'Last refusals', table(names, rows)]
}
