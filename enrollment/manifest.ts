import {
  ATTRIBUTE_LENGTH_MAX,
  ATTRIBUTE_NAME,
  ATTRIBUTES_MAX,
  type ImportReply,
  type ImportRequest,
  type ImportRow,
  type RowVerdict,
} from '#shared/api'
import { isDeviceId } from '#shared/identity/device'
import type { Deps } from './deps.ts'
import type { Actor, ManifestRow } from './registry/registry.ts'

const SPKI = /^[0-9a-f]{64}$/
/** C0, DEL and C1: they would move the cursor of whoever reads a list. */
const CONTROL = /\p{Cc}/u

/**
 * Expects the devices of a slice of a manifest: every one, or none when a row is refused. The reply judges each row.
 * @throws MusterError not_found (the batch)
 */
export async function importDevices(
  deps: Deps,
  { batch, rows, dryRun = false, by }: ImportRequest & { by: Actor },
): Promise<ImportReply> {
  const faults = rows.map(faultOf)
  const well = rows.flatMap((row, at) => (faults[at] === null ? [{ at, row: checked(row) }] : []))
  const reply = await deps.registry.importDevices({
    batch,
    rows: well.map(({ row }) => row),
    isRehearsal: dryRun || well.length < rows.length,
    now: deps.now(),
    by,
  })
  const verdicts = new Map(reply.rows.map((verdict, at) => [well[at]?.at, verdict]))
  return {
    ...reply,
    rows: rows.map(({ id }, at): RowVerdict => {
      const verdict = verdicts.get(at)
      if (verdict !== undefined) return { ...verdict, row: at + 1 }
      return { row: at + 1, id, verdict: 'refused', code: 'invalid_request', reason: faults[at] ?? null }
    }),
  }
}

/** What is wrong with the form of a row; null for nothing. */
function faultOf({ id, spki, attributes = {} }: ImportRow): string | null {
  if (!isDeviceId(id)) return `Cannot use the device id "${id}": it has not the form of one, or is reserved`
  if (spki !== undefined && !SPKI.test(spki)) return 'Cannot use the spki: it is no SHA-256 in hex'
  const named = Object.entries(attributes)
  if (named.length > ATTRIBUTES_MAX) return `Cannot keep more than ${ATTRIBUTES_MAX} attributes`
  for (const [name, value] of named) {
    if (!ATTRIBUTE_NAME.test(name)) return `Cannot use the attribute "${name}": it has not the form of a name`
    if (value.length > ATTRIBUTE_LENGTH_MAX) {
      return `Cannot keep "${name}": it has more than ${ATTRIBUTE_LENGTH_MAX} characters`
    }
    if (CONTROL.test(value)) return `Cannot keep "${name}": it has a control character`
  }
  return null
}

function checked({ id, spki, attributes = {} }: ImportRow): ManifestRow {
  return { id: id as ManifestRow['id'], spki: spki ?? null, attributes } // faultOf has looked at it
}
