import { X509Certificate } from 'node:crypto'
import { isIP } from 'node:net'
import { MusterError } from '#shared/errors'
import { splitPem } from '#shared/pki/pem'

/** When all certificates of a chain are good, ms since 1970. */
export interface Validity {
  readonly from: number
  /** The last valid second (RFC 5280 section 4.1.2.5). */
  readonly to: number
}

export interface PresentedChain {
  /** The server's certificate, and whatever it sent to lead from there to a root. */
  readonly leaf: X509Certificate
  readonly sent: readonly X509Certificate[]
}

const SERVER_AUTH = '1.3.6.1.5.5.7.3.1'
/** Leaf, issuing CA, two links between roots, root. */
const MOST_CERTIFICATES = 5

/**
 * Proves a server's chain to a root that the device believes, in everything but its dates: for a device that does not
 * know what time it is, these are what it has to find out. OpenSSL cannot be asked for that: it tells its last fault
 * only, and that of the dates hides the others.
 * @param of.roots PEM
 * @returns when the whole path is good
 * @throws MusterError unreachable when it leads to none of the roots, or is not this host's
 */
export function proveChain(chain: PresentedChain, of: { host: string; roots: string }): Validity {
  const { leaf, sent } = chain
  const { host } = of
  const isItsName = isIP(host) ? leaf.checkIP(host) : leaf.checkHost(host, { subject: 'never' })
  if (leaf.ca || isItsName === undefined || leaf.keyUsage?.includes(SERVER_AUTH) !== true) {
    throw distrust(host, 'its certificate is not that of a server with this name')
  }
  const roots = splitPem(of.roots).map((pem) => new X509Certificate(pem))
  const path = pathToRoot([leaf], { roots, sent })
  if (path === null) throw distrust(host, 'its certificate does not lead to a root of this device')
  return {
    from: Math.max(...path.map(({ validFromDate }) => validFromDate.getTime())),
    to: Math.min(...path.map(({ validToDate }) => validToDate.getTime())),
  }
}

/** Depth first: more than one CA may have the issuer's name and key while one root follows another. */
function pathToRoot(
  path: readonly X509Certificate[],
  of: { roots: readonly X509Certificate[]; sent: readonly X509Certificate[] },
): readonly X509Certificate[] | null {
  const last = path[path.length - 1]
  if (last === undefined || path.length >= MOST_CERTIFICATES) return null
  const root = of.roots.find((each) => hasSigned(each, last))
  if (root) return [...path, root]
  for (const each of of.sent) {
    if (path.includes(each) || !hasSigned(each, last)) continue
    const found = pathToRoot([...path, each], of)
    if (found) return found
  }
  return null
}

function hasSigned(above: X509Certificate, below: X509Certificate): boolean {
  return above.ca && below.checkIssued(above) && below.verify(above.publicKey)
}

function distrust(host: string, why: string): MusterError {
  return new MusterError('unreachable', `Cannot trust "${host}": ${why}`)
}
