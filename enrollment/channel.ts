import { MusterError } from '#shared/errors'

/** The TLS connection of a request, as far as the request can be linked to it (RFC 7030 section 3.5). */
export type Channel =
  | { readonly tlsUnique: string /** Base64, as challengePassword carries it. */ }
  | { readonly tlsUnique: null; readonly why: string }

/** A tls-unique is a Finished message of TLS 1.2: 12 octets (RFC 5246 section 7.4.9, RFC 5929 section 3). */
const TLS_UNIQUE = /^[A-Za-z0-9+/]{16}$/

/**
 * Compares challengePassword with the connection. A password of another form was never meant as a link, and without a
 * tls-unique there is nothing to compare it with: then the reason is returned, and the profile of the fleet decides.
 * @returns null when the request is linked
 * @throws MusterError csr_link when it was linked to another connection
 */
export function checkLink(challengePassword: string | null, channel: Channel): string | null {
  if (channel.tlsUnique === null) return channel.why
  if (challengePassword === null || !TLS_UNIQUE.test(challengePassword)) return 'it carries no tls-unique'
  if (challengePassword === channel.tlsUnique) return null
  const why = 'its tls-unique is that of another connection'
  throw new MusterError('csr_link', `Cannot accept the request: ${why}`, { evidence: { why } })
}
