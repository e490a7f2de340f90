import { fields, readDer, TAG } from '#shared/pki/der'
import { readTime } from '#shared/pki/time'
import { REASON_CODES, type RevocationReason, type RevokedEntry } from './revoked-entries.ts'

const REASONS = new Map(
  Object.entries(REASON_CODES).map(([name, code]) => [code as number, name as RevocationReason]),
) // its own keys

/** The entries of a CRL that was signed here (RFC 5280 section 5.1). @throws SyntaxError */
export function readCrlEntries(der: Uint8Array): RevokedEntry[] {
  const [tbs] = fields(readDer(der), 'CRL', [3, 3])
  // version, signature, issuer, thisUpdate, nextUpdate, then the list when it is not empty
  const list = tbs?.children[5]
  if (list?.tag !== TAG.sequence) return []
  return list.children.map((entry) => {
    const [serial, date, extensions] = entry.children
    const code = extensions?.raw.at(-1) ?? 0 // the reason is the last octet of its only extension
    return {
      serial: serial?.content.toString('hex') ?? '',
      revokedAt: readTime(date),
      reason: REASONS.get(code) ?? 'unspecified',
    }
  })
}
