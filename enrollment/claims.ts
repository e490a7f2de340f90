import type { ClaimReply, ClaimRequest } from '#shared/api'
import { MusterError } from '#shared/errors'
import { sha256Hex } from '#shared/pki/keys'
import { derToPem } from '#shared/pki/pem'
import { type CheckedCsr, checkCsr, decodeCsr } from './ca/check-csr.ts'
import { issueCertificate } from './ca/issue.ts'
import type { Deps } from './deps.ts'
import { newSerial } from './issuance.ts'
import type { Actor } from './registry/registry.ts'
import { checkedId, expiry } from './tokens.ts'

/** Life of a claim when nobody says otherwise, ms. */
const CLAIM_LIFE_MS = 365 * 86_400_000
/** Clocks of devices are not exact, ms. */
const BACKDATED_MS = 3_600_000

/**
 * A certificate that the devices of a batch share to enroll with: a token whose secret is a key. It is recorded before
 * it is signed, and is good once its certificate is recorded too. Cut off before that it is nobody's, and the next start
 * cancels it; cut off afterwards nobody has heard of it, and an operator may.
 * @throws MusterError csr_*, invalid_request, conflict, clock_wrong
 */
export async function createClaim(deps: Deps, request: ClaimRequest & { by: Actor }): Promise<ClaimReply> {
  const csr = await namelessCsr(deps, request)
  const now = deps.now()
  deps.signingClock.check(now)
  const issuer = deps.authority.device
  const { from, to } = datesOf(request.expiresAt, { now, last: issuer.notAfter })
  const [id, serial] = [`c-${deps.random(5).toString('hex')}`, newSerial(deps)]
  await deps.registry.createToken({
    id,
    hash: sha256Hex(`claim ${serial}`), // nobody presents that: it is not good before its certificate is recorded
    batch: request.batch,
    uses: request.uses,
    expiresAt: to,
    devices: request.devices ? [...new Set(request.devices)].map(checkedId) : null,
    naming: request.naming ?? null,
    approval: request.approval ?? false,
    claim: { issuer: issuer.id, serial, spki: csr.spkiHash, notAfter: to - 1000 },
    now,
    by: request.by,
  })
  deps.reached('claim.1')
  const signed = await issueCertificate(issuer, {
    profile: 'claim',
    id,
    spki: csr.spki,
    serial,
    notBefore: from,
    notAfter: to - 1000, // the last second in which it is valid
  })
  deps.reached('claim.2')
  const view = await deps.registry.finishClaim(id, signed, { now: deps.now(), by: request.by })
  deps.signingClock.issued(from)
  deps.reached('claim.3')
  const certificate = derToPem(signed.der, 'CERTIFICATE')
  return { ...view, certificate, chain: deps.authority.deviceChain(issuer.id) }
}

/** @throws MusterError csr_* */
async function namelessCsr({ caKeys }: Deps, request: Pick<ClaimRequest, 'csr'>): Promise<CheckedCsr> {
  const csr = await checkCsr(decodeCsr(request.csr), caKeys)
  if (csr.commonName === null && csr.uris.length === 0) return csr
  throw new MusterError('csr_subject', 'Cannot make the claim: its request names somebody', {
    evidence: { wish: csr.commonName ?? csr.uris[0] ?? '' },
  })
}

/** Both in whole seconds; no claim outlives its issuer. `to` is the first moment at which it is over. @throws MusterError invalid_request */
function datesOf(
  expiresAt: number | undefined,
  { now, last }: { now: number; last: number },
): { from: number; to: number } {
  const wholeSecond = (at: number) => Math.floor(at / 1000) * 1000
  const wanted = expiry(expiresAt, { now, otherwise: now + CLAIM_LIFE_MS })
  const to = wholeSecond(Math.min(wanted, last + 1000))
  if (to <= now) throw new MusterError('invalid_request', 'Cannot make the claim: it would expire at once')
  return { from: wholeSecond(now - BACKDATED_MS), to }
}
