import { X509Certificate } from 'node:crypto'
import { bitsOf, expectTag, fields, readDer, TAG } from '#shared/pki/der'
import { sha256Hex, verifyAs } from '#shared/pki/keys'
import { type Clock, untilSeen } from './clock.ts'

/** A certificate that should be on the CRL of its issuer. */
export interface Revoked {
  readonly serial: string
  /** PEM of the issuing CA. */
  readonly issuer: string
}

const DEADLINE_MS = 20_000
const LOOK_EVERY_MS = 250
const REPLY_DEADLINE_MS = 5_000

/** How many of the certificates are on the published CRLs, once all are, or at a deadline. */
export async function listedOnCrl(
  revoked: readonly Revoked[],
  options: { http: string; clock: Clock },
): Promise<number> {
  const issuers = [...new Set(revoked.map(({ issuer }) => issuer))]
  let listed = 0
  await untilSeen(
    async () => {
      const crls = new Map<string, Set<string>>()
      for (const issuer of issuers) crls.set(issuer, await fetchCrl(options.http, issuer))
      listed = revoked.filter(({ issuer, serial }) => crls.get(issuer)?.has(serial)).length
      return listed === revoked.length ? listed : null
    },
    { ms: DEADLINE_MS, everyMs: LOOK_EVERY_MS, clock: options.clock },
  )
  return listed
}

/** Empty while there is none. */
async function fetchCrl(http: string, issuer: string): Promise<Set<string>> {
  const url = new URL(`/crl/${sha256Hex(new X509Certificate(issuer).raw)}.crl`, http)
  const reply = await fetch(url, { signal: AbortSignal.timeout(REPLY_DEADLINE_MS) })
  return reply.ok ? readCrl(new Uint8Array(await reply.arrayBuffer()), issuer) : new Set()
}

/**
 * Serials that a CRL lists (RFC 5280 section 5.1), 32 lower-case hex digits each.
 * @throws SyntaxError when it is not a CRL, or not signed by this issuer
 */
export function readCrl(der: Uint8Array, issuerPem: string): Set<string> {
  const [tbsNode, , signature] = fields(readDer(der), 'CRL', [3, 3])
  const tbs = expectTag(tbsNode, TAG.sequence, 'tbsCertList')
  const { publicKey } = new X509Certificate(issuerPem)
  if (!verifyAs(publicKey, { data: tbs.raw, signature: bitsOf(signature) })) {
    throw new SyntaxError('the CRL is not signed by this issuer')
  }
  // The lists before it are the algorithm (5.1.2.2) and the issuer's name (5.1.2.3); times are no lists.
  const [, , entries] = tbs.children.filter(({ tag }) => tag === TAG.sequence)
  const serials = (entries?.children ?? []).map(({ children: [serial] }) =>
    expectTag(serial, TAG.integer, 'serial').content.toString('hex'),
  )
  return new Set(serials.map((hex) => hex.replace(/^(00)+/, '').padStart(32, '0')))
}
