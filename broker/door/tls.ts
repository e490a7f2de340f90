import { randomBytes } from 'node:crypto'
import { createSecureContext, type SecureContext, type Server, type TlsOptions } from 'node:tls'
import type { Log } from '#shared/log'
import { chainFault, type Hosted, trustedIssuers } from './tls-material.ts'

export interface Credentials {
  /** Chain of the broker, PEM, leaf first. */
  readonly certificate: string
  readonly key: string
  /** The root that chains must reach, PEM. */
  readonly root: string
  /** CAs below the root whose client certificates are looked at further, PEM; certificates of others are refused. */
  readonly trust: readonly string[]
}

/** AEAD only; TLS 1.2 with ephemeral ECDH. */
const CIPHERS = [
  'TLS_AES_128_GCM_SHA256',
  'TLS_AES_256_GCM_SHA384',
  'TLS_CHACHA20_POLY1305_SHA256',
  'ECDHE-ECDSA-AES128-GCM-SHA256',
  'ECDHE-ECDSA-AES256-GCM-SHA384',
  'ECDHE-ECDSA-CHACHA20-POLY1305',
].join(':')

/**
 * Best first: the hybrid with ML-KEM, so that what is recorded today stays closed to a quantum computer
 * (draft-ietf-tls-ecdhe-mlkem), then what every device has.
 */
const GROUPS = ['X25519MLKEM768', 'X25519', 'P-256', 'P-384'].join(':')

/** Octets of Node's `ticketKeys`: name, HMAC key and AES key, 16 each. */
const TICKET_KEYS_BYTES = 48
/** How long the same keys protect tickets, ms. A ticket of keys that are gone costs its client a full handshake. */
const TICKET_KEYS_MS = 3 * 3_600_000

/** What a TLS listener presents and trusts. */
export interface TlsIdentity {
  /** PEM of the CAs that client certificates are issued by, as they are trusted now. */
  readonly trust: readonly string[]
  /** What of the last reload could not be used, a sentence each; what was used before goes on. */
  readonly faults: readonly string[]
  /** Gives every server context, now and after each change. */
  serve(server: Server): void
  reload(credentials: Credentials): void
  close(): void
}

export interface TlsDeps extends Hosted {
  readonly log: Log
  /** For tests, which restart a broker with the same keys; random ones that are never written otherwise. */
  readonly ticketKeys?: Buffer
}

/**
 * The context of the listeners. A reload is looked at before it is used: a chain or key that cannot serve leaves the
 * pair before it in use; an issuer that cannot be trusted is left out, and one that was taken away goes in any case.
 * Keys of session tickets live in memory only. They are made anew every {@link TICKET_KEYS_MS}, and when another
 * certificate is presented or a CA was taken away, so that no session outlives what it was made under.
 */
export function openTlsIdentity(initial: Credentials, deps: TlsDeps): TlsIdentity {
  const servers = new Set<Server>()
  let { current, faults } = judged(initial, { deps, previous: null })
  let ticketKeys = deps.ticketKeys ?? randomBytes(TICKET_KEYS_BYTES)
  const apply = () => {
    for (const server of servers) use(server, contextOf(current, ticketKeys))
  }
  const rotation = setInterval(() => {
    ticketKeys = randomBytes(TICKET_KEYS_BYTES)
    apply()
  }, TICKET_KEYS_MS)
  rotation.unref()
  return {
    get trust() {
      return current.trust
    },
    get faults() {
      return faults
    },
    serve(server) {
      use(server, contextOf(current, ticketKeys))
      servers.add(server)
    },
    reload(credentials) {
      const previous = current
      ;({ current, faults } = judged(credentials, { deps, previous }))
      const isNarrower = previous.trust.some((pem) => !current.trust.includes(pem))
      if (isNarrower || previous.certificate !== current.certificate) {
        ticketKeys = randomBytes(TICKET_KEYS_BYTES)
      }
      apply()
    },
    close: () => clearInterval(rotation),
  }
}

interface Judging {
  readonly deps: TlsDeps
  readonly previous: Credentials | null
}

/** What is used from now on, and why not all of what was handed over. */
function judged(credentials: Credentials, { deps, previous }: Judging) {
  const refused = chainFault(credentials, deps) ?? contextFault(credentials)
  const pair = refused === null ? credentials : (previous ?? credentials)
  const { trust, faults: untrusted } = trustedIssuers(credentials.trust, {
    roots: pair.root,
    now: deps.now(),
  })
  const faults = refused === null ? untrusted : [refused, ...untrusted]
  for (const fault of faults)
    deps.log.error({ fault, keepsServing: previous !== null }, 'TLS material refused')
  const { certificate, key, root } = pair
  return { current: { certificate, key, root, trust }, faults: Object.freeze(faults) }
}

/** OpenSSL has the last word on what it can serve. */
function contextFault(credentials: Credentials): string | null {
  try {
    createSecureContext(contextOf({ ...credentials, trust: [] }, null))
    return null
  } catch (error) {
    return `the certificate and key cannot be used: ${(error as Error).message}`
  }
}

/**
 * From now on the server takes new connections with these options. A chain ends at the first CA that is trusted: that the
 * root has signed each of them is verified when they come, none is valid for longer than the root, and to verify it in each
 * handshake is a signature more. Node's servers drop the option for it, so the context is put where they keep theirs; where
 * a Node keeps it elsewhere, chains end at the root. Who the issuer is, the gate asks.
 */
export function use(server: Server, options: TlsOptions): void {
  server.setSecureContext(options)
  const keeping = server as Server & { _sharedCreds?: SecureContext } // where Node has it, without a public name
  if (keeping._sharedCreds === undefined) return
  keeping._sharedCreds = createSecureContext({ ...options, allowPartialTrustChain: true })
}

function contextOf({ certificate, key, root, trust }: Credentials, ticketKeys: Buffer | null): TlsOptions {
  return {
    cert: certificate,
    key,
    ca: [root, ...trust],
    minVersion: 'TLSv1.2',
    maxVersion: 'TLSv1.3',
    ciphers: CIPHERS,
    ecdhCurve: GROUPS,
    honorCipherOrder: true,
    sessionIdContext: 'muster-broker',
    ...(ticketKeys === null ? {} : { ticketKeys }),
  }
}
