import { encodeTbsCrl } from '#shared/pki/crl'
import { authorityKeyIdentifier, crlNumber, issuingDistributionPoint } from '#shared/pki/extensions'
import type { Issuer } from './issue.ts'
import { lintFailure } from './lint.ts'
import { assemble } from './template.ts'

/** CRLReason (RFC 5280 section 5.3.1). Holds are on no CRL, so certificateHold is not among them. */
const REASON_CODES = {
  unspecified: 0,
  keyCompromise: 1,
  affiliationChanged: 3,
  superseded: 4,
  cessationOfOperation: 5,
  privilegeWithdrawn: 9,
} as const

export type RevocationReason = keyof typeof REASON_CODES

/** A final revocation, dated at the commit of the hold that it began with. */
export interface RevokedEntry {
  /** Hex. */
  readonly serial: string
  /** Ms since 1970. */
  readonly revokedAt: number
  readonly reason: RevocationReason
}

export interface CrlRequest {
  /** Rises with every CRL of the issuer, and never falls. */
  readonly number: number
  /** Ms since 1970; cut to whole seconds, because fractions are not allowed (RFC 5280 section 5.1.2.4). */
  readonly thisUpdate: number
  readonly nextUpdate: number
  readonly entries: readonly RevokedEntry[]
}

/**
 * DER of a complete v2 CRL (RFC 5280 section 5), with the distribution point that the certificates name.
 * @throws MusterError lint_failed (evidence: rule)
 */
export async function signCrl(issuer: Issuer, request: CrlRequest): Promise<Buffer> {
  lint(request)
  const { algorithm } = issuer.signer
  const tbs = encodeTbsCrl({
    algorithm,
    issuer: issuer.name,
    thisUpdate: wholeSecond(request.thisUpdate),
    nextUpdate: wholeSecond(request.nextUpdate),
    entries: request.entries.map(({ serial, revokedAt, reason }) => ({
      serial,
      revokedAt,
      reason: REASON_CODES[reason],
    })),
    extensions: [
      authorityKeyIdentifier(issuer.keyId),
      crlNumber(request.number),
      issuingDistributionPoint(issuer.crlUrl),
    ],
  })
  return assemble({ tbs, algorithm, signature: await issuer.signer.sign(tbs) })
}

function wholeSecond(at: number): number {
  return Math.floor(at / 1000) * 1000
}

/** Whole octets, at most 20, not zero; that they are hex is for the encoder, which reads them anyway, to find. */
function isSerial(serial: string): boolean {
  return serial.length % 2 === 0 && serial.length > 0 && serial.length <= 40 && !/^0+$/.test(serial)
}

const RULES: Readonly<Record<string, (request: CrlRequest) => boolean>> = {
  crl_number: ({ number }) => Number.isSafeInteger(number) && number > 0,
  next_update: ({ thisUpdate, nextUpdate }) => wholeSecond(nextUpdate) > wholeSecond(thisUpdate),
  entry_once: ({ entries }) => new Set(entries.map(({ serial }) => serial)).size === entries.length,
  entry_serial: ({ entries }) => entries.every(({ serial }) => isSerial(serial)),
  // Both as they are encoded: what was revoked in the second of thisUpdate belongs on the list.
  entry_not_in_future: ({ entries, thisUpdate }) =>
    entries.every(({ revokedAt }) => wholeSecond(revokedAt) <= wholeSecond(thisUpdate)),
  entry_reason: ({ entries }) => entries.every(({ reason }) => Object.hasOwn(REASON_CODES, reason)),
}

function lint(request: CrlRequest): void {
  for (const [rule, holds] of Object.entries(RULES)) {
    if (!holds(request)) throw lintFailure(rule)
  }
}
