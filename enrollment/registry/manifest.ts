import type { ImportReply, RowVerdict } from '#shared/api/bootstrap'
import { isMusterError, MusterError } from '#shared/errors'
import { type ApprovingParts, expectDevice, prepareApproving } from './approving.ts'
import type { Attributes } from './attributes.ts'
import type { Manifest, ManifestRow } from './bootstrap-records.ts'
import type { Registry } from './registry.ts'

interface ManifestParts extends ApprovingParts {
  readonly attributes: Attributes
}

interface Importing extends ManifestParts {
  readonly statements: ReturnType<typeof prepareApproving>
  readonly manifest: Manifest
}

/** Undoes an import by being thrown out of its transaction: what was judged is all that is left of it. */
export class Undone extends Error {
  readonly verdicts: readonly RowVerdict[]

  constructor(verdicts: readonly RowVerdict[]) {
    super('the import is undone')
    this.verdicts = verdicts
  }
}

/** A rehearsal runs the same statements as the import itself, so that both judge alike. */
export function openManifests(parts: ManifestParts): Pick<Registry, 'importDevices'> {
  const statements = prepareApproving(parts.store.db)
  return {
    async importDevices(manifest): Promise<ImportReply> {
      const { batch } = manifest
      try {
        return { batch, applied: true, rows: await importRows({ ...parts, statements, manifest }) }
      } catch (error) {
        if (error instanceof Undone) return { batch, applied: false, rows: [...error.verdicts] }
        throw error
      }
    },
  }
}

function importRows(importing: Importing): Promise<RowVerdict[]> {
  const { store, fleets, manifest } = importing
  const { batch, rows, isRehearsal } = manifest
  return store.write(manifest, (log) => {
    if (fleets.findBatch(batch) === undefined) {
      throw new MusterError('not_found', `Cannot find the batch "${batch}"`)
    }
    const verdicts = rows.map((row, at) => ({ row: at + 1, id: row.id, ...judge(importing, row) }))
    const added = verdicts.filter(({ verdict }) => verdict === 'added').length
    if (isRehearsal || verdicts.some(({ verdict }) => verdict === 'refused')) throw new Undone(verdicts)
    if (added > 0) log.audit({ action: 'device.import', subject: `batch:${batch} devices:${added}` })
    return verdicts
  })
}

function judge(importing: Importing, row: ManifestRow): Omit<RowVerdict, 'row' | 'id'> {
  if (isKnown(importing, row)) return { verdict: 'known', code: null, reason: null }
  const { statements, attributes, manifest } = importing
  const { batch, now, by } = manifest
  const { id, spki } = row
  try {
    const device = expectDevice(importing, { statements, device: { id, spki, batch, now, by } })
    attributes.add(device.row, row.attributes)
    return { verdict: 'added', code: null, reason: null }
  } catch (error) {
    if (!isMusterError(error)) throw error
    return { verdict: 'refused', code: error.code, reason: error.message }
  }
}

/** Whether the device is waited for already, just as the row has it. */
function isKnown({ statements, approvals, attributes, manifest }: Importing, row: ManifestRow): boolean {
  const device = statements.device.get(row.id)
  if (device === undefined || device.batch !== manifest.batch || device.state !== 'expected') return false
  const approval = approvals.ofDevice(device.row)
  if (approval?.state !== 'approved' || approval.token !== null || approval.spki !== row.spki) return false
  const has = new Map(Object.entries(attributes.of(device.row)))
  const named = Object.entries(row.attributes)
  return has.size === named.length && named.every(([name, value]) => has.get(name) === value)
}
