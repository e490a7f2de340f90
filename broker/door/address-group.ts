import { isIPv6 } from 'node:net'

/** How many 16-bit pieces of an IPv6 address one subscriber has: /64 (RFC 6177, RFC 4291 section 2.5.4). */
const PREFIX_PIECES = 4

/**
 * Whom an address counts for: an IPv4 address for itself, also one that is mapped into IPv6, and an IPv6 address for
 * its /64, because whoever has one address of that has all.
 */
export function addressGroup(address: string): string {
  const plain = address.replace(/^::ffff:(?=\d+\.)/i, '')
  if (!isIPv6(plain)) return plain
  const [bare = ''] = plain.split('%', 1)
  const [head = '', tail] = bare.split('::', 2)
  const first = pieces(head)
  const last = tail === undefined ? [] : pieces(tail)
  const zeros = tail === undefined ? 0 : Math.max(0, 8 - first.length - last.length)
  const all = [...first, ...Array<string>(zeros).fill('0'), ...last]
  return `${all.slice(0, PREFIX_PIECES).join(':')}::/64`
}

/** Pieces without leading zeros; an IPv4 address at the end is two of them, whose value is not asked for. */
function pieces(text: string): string[] {
  if (text === '') return []
  return text
    .split(':')
    .flatMap((piece) => (piece.includes('.') ? ['0', '0'] : [Number.parseInt(piece, 16).toString(16)]))
}
