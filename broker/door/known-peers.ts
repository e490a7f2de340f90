import type { X509Certificate } from 'node:crypto'
import { checkDates, type Peer, type PeerKind, readPeer } from '#shared/identity/peer'
import { sha256Hex } from '#shared/pki/keys'

/** Who may come to a broker. */
const KINDS: readonly PeerKind[] = ['device', 'service']
/** Most certificates that are remembered. */
const MOST = 4_096

/**
 * What certificates say about who presents them. Their octets say the same each time, so a certificate that comes
 * again, which is how devices connect, is not taken apart again; its dates are looked at each time.
 */
export class KnownPeers {
  readonly #trustDomain: string
  /** By the SHA-256 of the DER. */
  readonly #peers = new Map<string, Peer>()

  constructor(trustDomain: string) {
    this.#trustDomain = trustDomain
  }

  /** Of a certificate whose issuer is known to have signed it. @throws MusterError as `checkPeer` */
  of({ raw }: X509Certificate, now: number): Peer {
    const fingerprint = sha256Hex(raw)
    const peer = this.#peers.get(fingerprint) ?? this.#read(raw)
    checkDates(peer, now)
    return peer
  }

  #read(der: Buffer): Peer {
    const peer = readPeer(der, { trustDomain: this.#trustDomain, kinds: KINDS })
    if (this.#peers.size >= MOST) this.#peers.clear()
    this.#peers.set(peer.fingerprint, peer)
    return peer
  }
}
