import { encodeTbsCrl } from '#shared/pki/crl'
import { authorityKeyIdentifier, crlNumber, issuingDistributionPoint } from '#shared/pki/extensions'
import type { Issuer } from './issue.ts'
import { lintFailure } from './lint.ts'
import { RevokedEntries, type RevokedEntry } from './revoked-entries.ts'
import { assemble } from './template.ts'

export type { RevocationReason, RevokedEntry } from './revoked-entries.ts'

export interface CrlRequest {
  /** Rises with every CRL of the issuer, and never falls. */
  readonly number: number
  /** Ms since 1970; cut to whole seconds, because fractions are not allowed (RFC 5280 section 5.1.2.4). */
  readonly thisUpdate: number
  readonly nextUpdate: number
  /** A list, or lists that were encoded before, all of which go into this CRL. */
  readonly entries: readonly RevokedEntry[] | readonly RevokedEntries[]
  /** The distribution point that the certificates name; the issuer's full CRL without it. */
  readonly url?: string
}

/**
 * DER of a complete v2 CRL (RFC 5280 section 5), with the distribution point that the certificates name.
 * @throws MusterError lint_failed (evidence: rule)
 */
export async function signCrl(issuer: Issuer, request: CrlRequest): Promise<Buffer> {
  const lists = encoded(request.entries)
  const wrong = Object.entries(RULES).find(([, holds]) => !holds(request, lists))
  if (wrong) throw lintFailure(wrong[0])
  const { algorithm } = issuer.signer
  const tbs = encodeTbsCrl({
    algorithm,
    issuer: issuer.name,
    thisUpdate: wholeSecond(request.thisUpdate),
    nextUpdate: wholeSecond(request.nextUpdate),
    entries: lists.map(({ octets }) => octets),
    extensions: [
      authorityKeyIdentifier(issuer.keyId),
      crlNumber(request.number),
      issuingDistributionPoint(request.url ?? issuer.crlUrl),
    ],
  })
  return assemble({ tbs, algorithm, signature: await issuer.signer.sign(tbs) })
}

function wholeSecond(at: number): number {
  return Math.floor(at / 1000) * 1000
}

function encoded(entries: CrlRequest['entries']): readonly RevokedEntries[] {
  if (entries.every((one) => one instanceof RevokedEntries)) return entries
  return [RevokedEntries.of(entries.filter((one) => !(one instanceof RevokedEntries)))]
}

/** What is not checked where the entries are added. */
const RULES: Readonly<Record<string, (request: CrlRequest, lists: readonly RevokedEntries[]) => boolean>> = {
  crl_number: ({ number }) => Number.isSafeInteger(number) && number > 0,
  next_update: ({ thisUpdate, nextUpdate }) => wholeSecond(nextUpdate) > wholeSecond(thisUpdate),
  // Both as they are encoded: what was revoked in the second of thisUpdate belongs on the list.
  entry_not_in_future: ({ thisUpdate }, lists) =>
    lists.every(({ newestRevocation }) => wholeSecond(newestRevocation) <= wholeSecond(thisUpdate)),
}
