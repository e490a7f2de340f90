import type { HoldRecord } from '#shared/feed'
import type { Sqlite } from '#shared/sqlite'

/** Is the device, present or not, in the scope of the hold? */
export type Covers = (hold: Pick<HoldRecord, 'id' | 'scope'>, device: string) => boolean

/**
 * Asks a state about devices; admission asks about certificates (`hold-index.ts`). A hold on an issuer covers a device
 * that has a certificate of it and no live one of another: with that one it goes on.
 */
export function prepareCoverage(db: Sqlite): Covers {
  const inBatch = db.prepare<[string, string], unknown>('SELECT 1 FROM devices WHERE id = ? AND batch = ?')
  const inFleet = db.prepare<[string, string], unknown>('SELECT 1 FROM devices WHERE id = ? AND fleet = ?')
  const isMember = db.prepare<[string, string], unknown>(
    'SELECT 1 FROM members WHERE device = ? AND hold = ?',
  )
  const certificates = db.prepare<[string], { issuer: Buffer | string; state: string }>(
    'SELECT issuer, state FROM certificates WHERE device = ?',
  )
  const isOf = (issuer: Buffer | string, id: string) =>
    (typeof issuer === 'string' ? issuer : issuer.toString('hex')) === id

  return ({ id: hold, scope: { kind, id } }, device) => {
    switch (kind) {
      case 'device':
        return device === id
      case 'batch':
        return inBatch.get(device, id) !== undefined
      case 'fleet':
        return inFleet.get(device, id) !== undefined
      case 'plan':
        return isMember.get(device, hold) !== undefined
      case 'issuer': {
        const all = certificates.all(device)
        const isLive = ({ state }: { state: string }) => state === 'issued' || state === 'active'
        return (
          all.some(({ issuer }) => isOf(issuer, id)) &&
          !all.some((one) => isLive(one) && !isOf(one.issuer, id))
        )
      }
      default:
        kind satisfies never
        return false
    }
  }
}
