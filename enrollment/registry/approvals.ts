import { MusterError } from '#shared/errors'
import type { DeviceId } from '#shared/identity/device'
import type { Sqlite } from '#shared/sqlite'
import { newestFirst } from './rows.ts'

/** Who may enroll with which key: asked for with a token, or said beforehand by an operator. */
export interface ApprovalRow {
  readonly row: number
  /** Null once it is rejected. */
  readonly device: number | null
  /** Row of the token of which a use is reserved; null when nobody has asked yet. */
  readonly token: number | null
  /** SHA-256 of the SubjectPublicKeyInfo, hex; null for any key. */
  readonly spki: string | null
  readonly state: 'pending' | 'approved' | 'rejected'
  /** 1: the application made the device. */
  readonly made: 0 | 1
  readonly created_at: number
}

type NewApproval = Omit<ApprovalRow, 'row' | 'device'> & { readonly device: number }

function prepare(db: Sqlite) {
  return {
    ofDevice: db.prepare<[number], ApprovalRow>('SELECT * FROM approvals WHERE device = ?'),
    ofRequest: db.prepare<[string, number], ApprovalRow>(
      'SELECT * FROM approvals WHERE spki = ? AND token = ?',
    ),
    // not `IN (SELECT …)`, for which SQLite makes a table at every call
    ofKey: db.prepare<[string], { id: DeviceId; batch: string | null }>(
      `SELECT (SELECT d.id FROM devices d WHERE d.row = a.device) AS id,
         (SELECT d.batch FROM devices d WHERE d.row = a.device) AS batch
       FROM approvals a WHERE a.spki = ? AND a.device IS NOT NULL`,
    ),
    insert: db.prepare<[NewApproval]>(
      `INSERT INTO approvals (device, token, spki, state, made, created_at)
       VALUES (@device, @token, @spki, @state, @made, @created_at)`,
    ),
    approve: db.prepare<[number]>(`UPDATE approvals SET state = 'approved' WHERE row = ?`),
    reject: db.prepare<[number]>(`UPDATE approvals SET state = 'rejected', device = NULL WHERE row = ?`),
    readmit: db.prepare<[string]>(`DELETE FROM approvals WHERE spki = ? AND state = 'rejected'`),
    remove: db.prepare<[number]>('DELETE FROM approvals WHERE row = ?'),
    giveBack: db.prepare<[number]>('UPDATE tokens SET used = used - 1 WHERE row = ?'),
  }
}

/** The rows of approvals, for those parts of the registry that read or write them within an intent of their own. */
export function openApprovals(db: Sqlite) {
  const statements = prepare(db)
  return {
    /** What is known about a device that has not enrolled: at most one. */
    ofDevice: (device: number) => statements.ofDevice.get(device),
    /** The application that was made with this key and token. */
    ofRequest: (spki: string, token: number) => newestFirst(statements.ofRequest.all(spki, token))[0],
    /** The device of the batch that is waited for with this key. */
    expectedWith: (spki: string, batch: string) =>
      statements.ofKey.all(spki).find((found) => found.batch === batch)?.id ?? null,
    insert: (approval: NewApproval) => void statements.insert.run(approval),
    approve: (row: number) => void statements.approve.run(row),
    reject: (row: number) => void statements.reject.run(row),
    /** Forgets that a key was rejected. */
    readmit: (spki: string) => void statements.readmit.run(spki),
    remove: (row: number) => void statements.remove.run(row),
    /** Returns the use of the token that an application had reserved. */
    giveBack: ({ token }: ApprovalRow) => void (token !== null && statements.giveBack.run(token)),
    /** @throws MusterError csr_key when another device is waited for with this key */
    refuseForeignKey(spki: string, device: string): void {
      if (statements.ofKey.all(spki).every(({ id }) => id === device)) return
      const why = 'it belongs to another device'
      throw new MusterError('csr_key', `Cannot use the key for "${device}": ${why}`, {
        evidence: { key: spki, why },
      })
    },
  }
}
export type Approvals = ReturnType<typeof openApprovals>
