import { BlockList, isIP } from 'node:net'

/** A network as CIDR, or an address alone; null when it is neither. */
export function readNetwork(text: string): { address: string; bits: number; family: 'ipv4' | 'ipv6' } | null {
  const [address = '', length, ...more] = text.split('/')
  const version = isIP(address)
  if (version === 0 || more.length > 0 || address.includes('%')) return null
  const longest = version === 4 ? 32 : 128
  if (length !== undefined && !/^(0|[1-9]\d{0,2})$/.test(length)) return null
  const bits = length === undefined ? longest : Number(length)
  return bits > longest ? null : { address, bits, family: version === 4 ? 'ipv4' : 'ipv6' }
}

/** Tells whether an address is in one of the networks; null when one of them cannot be read. */
export function networks(texts: readonly string[]): ((address: string) => boolean) | null {
  const list = new BlockList()
  for (const text of texts) {
    const network = readNetwork(text)
    if (network === null) return null
    list.addSubnet(network.address, network.bits, network.family)
  }
  return (address) => {
    const version = isIP(address)
    return version !== 0 && list.check(address, version === 4 ? 'ipv4' : 'ipv6')
  }
}
