import type { Issuer } from './issue.ts'

/** Given to a new authority, and to one from before there were shards. */
export const DEFAULT_CRL_SHARDS = 64

/** More would have more signatures than entries. */
export const MAX_CRL_SHARDS = 4096

/** Which of the shards lists the certificate; by the end of its serial, all of whose bits are random. */
export function shardOf(serial: string, shards: number): number {
  return Number.parseInt(serial.slice(-8), 16) % shards
}

/** Where the CRL of a shard is served: beside the full one. */
export function shardUrl({ crlUrl }: Pick<Issuer, 'crlUrl'>, shard: number): string {
  return `${crlUrl.slice(0, -'.crl'.length)}/${shard}.crl`
}

/** The CRL that a certificate with this serial names. */
export function distributionPoint(issuer: Pick<Issuer, 'crlUrl' | 'crlShards'>, serial: string): string {
  return issuer.crlShards === 0 ? issuer.crlUrl : shardUrl(issuer, shardOf(serial, issuer.crlShards))
}
