import type { RowVerdict } from '#shared/api/bootstrap'
import type { ManufacturedReply } from '#shared/api/manufacturers'
import { isMusterError, MusterError } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import { type ApprovingParts, expectDevice, prepareApproving } from './approving.ts'
import { Undone } from './manifest.ts'
import { requireMaker } from './manufacturers.ts'
import type { ManufacturedList, ManufacturedRow, Registry } from './registry.ts'

interface Maker {
  readonly row: number
  readonly batch: string
  readonly cancelled_at: number | null
}

interface Numbers {
  readonly token: number
  readonly serialNumber: string | null
  readonly certificateSerial: string | null
}

interface Found {
  readonly maker: string
  readonly device: string
  readonly serial_number: string | null
  readonly certificate_serial: string | null
}

function prepare(db: Sqlite) {
  return {
    maker: db.prepare<[string], Maker>(
      `SELECT row, batch, cancelled_at FROM tokens WHERE kind = 'manufacturer' AND id = ?`,
    ),
    /** Devices of the same CA that have one of the numbers, on lists that are not cancelled. */
    same: db.prepare<[Numbers], Found>(
      `SELECT t.id AS maker, x.device, x.serial_number, x.certificate_serial
       FROM manufacturers own CROSS JOIN manufacturers m ON m.ca = own.ca CROSS JOIN tokens t ON t.row = m.token
       CROSS JOIN manufactured x ON x.token = m.token
         AND (x.serial_number = @serialNumber OR x.certificate_serial = @certificateSerial)
       WHERE own.token = @token AND t.cancelled_at IS NULL`,
    ),
    insert: db.prepare<[Numbers & { device: string }]>(
      `INSERT INTO manufactured (token, serial_number, certificate_serial, device)
       VALUES (@token, @serialNumber, @certificateSerial, @device)`,
    ),
    /** From the list of one that is cancelled, while the device has not come. */
    takeOver: db.prepare<[string, string]>(
      `DELETE FROM manufactured WHERE device = ?
         AND token IN (SELECT t.row FROM tokens t WHERE t.cancelled_at IS NOT NULL)
         AND device IN (SELECT d.id FROM devices d WHERE d.batch = ? AND d.state = 'expected')`,
    ),
    addUse: db.prepare<[number]>('UPDATE tokens SET uses = uses + 1 WHERE row = ?'),
  }
}

interface Listing extends ApprovingParts {
  readonly statements: ReturnType<typeof prepare>
  readonly approving: ReturnType<typeof prepareApproving>
  readonly list: ManufacturedList
}

/** The lists of manufacturers. A rehearsal runs the statements of the import itself, so that both judge alike. */
export function openManufactured(parts: ApprovingParts): Pick<Registry, 'listManufactured'> {
  const { db } = parts.store
  const [statements, approving] = [prepare(db), prepareApproving(db)]
  return {
    async listManufactured(list): Promise<ManufacturedReply> {
      const { manufacturer } = list
      try {
        const rows = await listRows({ ...parts, statements, approving, list })
        return { manufacturer, applied: true, rows }
      } catch (error) {
        if (error instanceof Undone) return { manufacturer, applied: false, rows: [...error.verdicts] }
        throw error
      }
    },
  }
}

function listRows(listing: Listing): Promise<RowVerdict[]> {
  const { store, statements, list } = listing
  return store.write(list, (log) => {
    const maker = requireMaker(statements.maker.get(list.manufacturer), list.manufacturer)
    if (maker.cancelled_at !== null) {
      throw new MusterError('conflict', `Cannot list devices of "${list.manufacturer}": it is cancelled`)
    }
    const verdicts = list.rows.map((row, at) => ({ row: at + 1, id: row.id, ...judge(listing, maker, row) }))
    const added = verdicts.filter(({ verdict }) => verdict === 'added').length
    if (list.isRehearsal || verdicts.some(({ verdict }) => verdict === 'refused')) throw new Undone(verdicts)
    if (added > 0) {
      log.audit({
        action: 'manufacturer.list',
        subject: `manufacturer:${list.manufacturer} devices:${added}`,
      })
    }
    return verdicts
  })
}

function judge(...[listing, maker, row]: [Listing, Maker, ManufacturedRow]): Omit<RowVerdict, 'row' | 'id'> {
  const { statements, approving, list } = listing
  const { id, serialNumber, certificateSerial } = row
  const numbers = { token: maker.row, serialNumber, certificateSerial }
  const [same] = statements.same.all(numbers)
  if (same !== undefined && isKnown(same, list.manufacturer, row)) {
    return { verdict: 'known', code: null, reason: null }
  }
  try {
    if (same !== undefined) {
      throw new MusterError('conflict', `Cannot list it: its numbers are those of "${same.device}"`)
    }
    const { batch } = maker
    if (statements.takeOver.run(id, batch).changes === 0) {
      expectDevice(listing, {
        statements: approving,
        device: { id, batch, spki: null, now: list.now, by: list.by },
      })
    }
    statements.insert.run({ ...numbers, device: id })
    statements.addUse.run(maker.row)
    return { verdict: 'added', code: null, reason: null }
  } catch (error) {
    if (!isMusterError(error)) throw error
    return { verdict: 'refused', code: error.code, reason: error.message }
  }
}

/** Whether the list has it already, just as the row says. */
function isKnown(...[same, manufacturer, row]: [Found, string, ManufacturedRow]): boolean {
  return (
    same.maker === manufacturer &&
    same.device === row.id &&
    same.serial_number === row.serialNumber &&
    same.certificate_serial === row.certificateSerial
  )
}
