import { MusterError } from '#shared/errors'
import { prepareRevokeClaims } from './claim-revocation.ts'
import type { Registry } from './registry.ts'
import type { Store } from './store.ts'
import { type TokenRow, tokenView } from './tokens.ts'

/** A claim is recorded before it is signed, and opens nothing until its certificate is recorded too. */
export function openClaims(store: Store): Pick<Registry, 'finishClaim' | 'cancelUnfinishedClaims'> {
  const find = store.db.prepare<[string], TokenRow>(`SELECT * FROM tokens WHERE kind = 'claim' AND id = ?`)
  const sign = store.db.prepare<[Buffer, number]>('UPDATE claims SET der = ? WHERE token = ? AND der IS NULL')
  const arm = store.db.prepare<[string, number]>('UPDATE tokens SET hash = ? WHERE row = ?')
  const cancel = store.db.prepare<[number]>(
    `UPDATE tokens SET cancelled_at = ? WHERE kind = 'claim' AND cancelled_at IS NULL
       AND row IN (SELECT token FROM claims WHERE der IS NULL)`,
  )
  const revokeCancelled = prepareRevokeClaims(store.db)
  return {
    finishClaim: (id, { der, fingerprint }, act) =>
      store.write(act, (log) => {
        const claim = find.get(id)
        if (claim === undefined) throw new MusterError('not_found', `Cannot find the claim "${id}"`)
        if (sign.run(der, claim.row).changes === 0) return tokenView(claim, act.now)
        arm.run(fingerprint, claim.row)
        revokeCancelled() // it may have been, while it was signed
        log.audit({ action: 'claim.issue', subject: `claim:${id} certificate:${fingerprint}` })
        return tokenView(claim, act.now)
      }),
    cancelUnfinishedClaims: (act) =>
      store.write(act, (log) => {
        const { changes } = cancel.run(act.now)
        if (changes > 0) log.audit({ action: 'claim.cancel', subject: `claims:${changes} unfinished` })
        return changes
      }),
  }
}
