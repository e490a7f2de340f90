import { X509Certificate } from 'node:crypto'
import type { ManufacturerView } from '#shared/api/manufacturers'
import { MusterError } from '#shared/errors'
import type { Sqlite } from '#shared/sqlite'
import type { Fleets } from './fleets.ts'
import type { Idevid, ManufacturerCa, Registry } from './registry.ts'
import type { Store } from './store.ts'
import { type TokenRow, tokenView } from './tokens.ts'

interface MakerRow extends TokenRow {
  readonly hash: string
  readonly ca: string
  readonly pem: string
}

const MAKERS = 'SELECT t.*, m.ca, m.pem FROM tokens t CROSS JOIN manufacturers m ON m.token = t.row'

function prepare(db: Sqlite) {
  return {
    insert: db.prepare<[{ id: string; hash: string; batch: string; expiresAt: number | null; now: number }]>(
      `INSERT INTO tokens (id, kind, hash, batch, uses, expires_at, listed, created_at)
       VALUES (@id, 'manufacturer', @hash, @batch, 0, @expiresAt, 0, @now)`,
    ),
    insertCa: db.prepare<[number | bigint, string, string]>(
      'INSERT INTO manufacturers (token, ca, pem) VALUES (?, ?, ?)',
    ),
    find: db.prepare<[string], MakerRow>(`${MAKERS} WHERE t.id = ?`),
    all: db.prepare<[], MakerRow>(`${MAKERS} ORDER BY t.row`),
    ofCa: db.prepare<[string], MakerRow>(`${MAKERS} WHERE m.ca = ? ORDER BY t.row DESC`),
    has: db.prepare<[number, string | null, string], { one: 1 }>(
      'SELECT 1 AS one FROM manufactured WHERE token = ? AND (serial_number = ? OR certificate_serial = ?)',
    ),
  }
}

type MakerIntents = Pick<
  Registry,
  'createManufacturer' | 'listManufacturers' | 'manufacturerCas' | 'findManufacturer'
>

/** Manufacturers whose certificates devices may enroll with. */
export function openManufacturers({ store, fleets }: { store: Store; fleets: Fleets }): MakerIntents {
  const statements = prepare(store.db)
  return {
    createManufacturer: (manufacturer) =>
      store.write(manufacturer, (log) => {
        const { id, hash, batch, expiresAt, ca, pem, now } = manufacturer
        if (fleets.findBatch(batch) === undefined) {
          throw new MusterError('not_found', `Cannot find the batch "${batch}"`)
        }
        const { lastInsertRowid } = statements.insert.run({ id, hash, batch, expiresAt, now })
        statements.insertCa.run(lastInsertRowid, ca, pem)
        log.audit({ action: 'manufacturer.create', subject: `manufacturer:${id} batch:${batch} ca:${ca}` })
        return makerView(requireMaker(statements.find.get(id), id), now)
      }),
    listManufacturers: (now) => store.read(() => statements.all.all().map((row) => makerView(row, now))),
    manufacturerCas: (now) =>
      store.read(() => {
        const rows = statements.all.all().map((row): ManufacturerCa => {
          const { id, ca, pem } = row
          return { id, ca, pem, isOpen: isOpen(row, now) }
        })
        return rows.toSorted((a, b) => Number(b.isOpen) - Number(a.isOpen))
      }),
    findManufacturer: (idevid, now) =>
      store.read(() => {
        const rows = statements.ofCa.all(idevid.ca)
        const lists = (row: MakerRow) => isListed(statements, row, idevid)
        const found =
          rows.find((row) => isOpen(row, now) && lists(row)) ??
          rows.find(lists) ??
          rows.find((row) => isOpen(row, now)) ??
          rows[0]
        return found === undefined ? null : { hash: found.hash, id: found.id }
      }),
  }
}

function isListed(statements: ReturnType<typeof prepare>, ...[row, idevid]: [MakerRow, Idevid]): boolean {
  return statements.has.get(row.row, idevid.serialNumber, idevid.certificateSerial) !== undefined
}

function isOpen(row: TokenRow, now: number): boolean {
  return row.cancelled_at === null && (row.expires_at === null || row.expires_at > now)
}

/** @throws MusterError not_found */
export function requireMaker<Row>(row: Row | undefined, id: string): Row {
  if (row !== undefined) return row
  throw new MusterError('not_found', `Cannot find the manufacturer "${id}"`)
}

function makerView(row: MakerRow, now: number): ManufacturerView {
  const { id, batch, uses: listed, used: enrolled, state, expiresAt, createdAt } = tokenView(row, now)
  const certificate = new X509Certificate(row.pem)
  const subject = certificate.subject
    .replaceAll('\n', ', ')
    .replaceAll(/\p{Cc}/gu, '?')
    .slice(0, 200)
  const notAfter = certificate.validToDate.getTime()
  const ca = certificate.fingerprint256.replaceAll(':', '').toLowerCase()
  return { id, batch, ca, subject, notAfter, listed, enrolled, state, expiresAt, createdAt }
}
