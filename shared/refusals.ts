import type { RefusalErrorCode } from './errors.ts'

type Dashed<S extends string> = S extends `${infer Head}_${infer Tail}`
  ? `${Uppercase<Head>}-${Dashed<Tail>}`
  : Uppercase<S>

/** The code that people see: `token_spent` is `R-TOKEN-SPENT`. */
export type RefusalCode = `R-${Dashed<RefusalErrorCode>}`

/** Where a refusal happens: before or at CONNECT, in a session, or at the enrollment service. */
export type RefusalStage = 'tls' | 'connect' | 'session' | 'enroll'

export interface RefusalRow {
  readonly stage: RefusalStage
  /** One sentence: what is the case. */
  readonly text: string
  /** Which evidence is recorded with it. */
  readonly evidence: readonly string[]
  /** What the reader does about it; a command where there is one, `<device>` stands for the device id. */
  readonly fix: string
}

/** The one table of refusals: it drives broker, API, CLI and docs/refusals.md. */
export const REFUSALS = {
  'R-TLS': {
    stage: 'tls',
    text: 'The TLS handshake failed, before the client could be known.',
    evidence: ['address', 'fault', 'means'],
    fix: 'Give the client the root certificate (`data/ca/root.crt`), a name of `--host` to connect to and the right time, and let it speak TLS 1.2 or 1.3 with an AEAD suite.',
  },
  'R-NOCERT': {
    stage: 'tls',
    text: 'The client presented no certificate.',
    evidence: ['address'],
    fix: 'Configure the client with its certificate and key; enroll it first if it has none.',
  },
  'R-UNKNOWN-CA': {
    stage: 'tls',
    text: 'The certificate was not issued by the device CA of this plane.',
    evidence: ['issuer', 'reason'],
    fix: 'Enroll the device here: `muster token create --batch <batch> --uses 1`.',
  },
  'R-PROFILE': {
    stage: 'tls',
    text: 'The certificate is not a client certificate as this plane issues them.',
    evidence: ['violation'],
    fix: 'Use the certificate that enrollment issued, unchanged; `muster device reissue <device>` makes a new one possible.',
  },
  'R-CLAIM': {
    stage: 'tls',
    text: 'The certificate is the claim of a batch: it enrolls devices, and opens nothing else.',
    evidence: ['claim'],
    fix: 'Enroll with it (EST `simpleenroll`, or `POST /v1/enroll`), then connect with the certificate and key of the device.',
  },
  'R-EXPIRED': {
    stage: 'tls',
    text: 'The certificate has expired.',
    evidence: ['notAfter', 'now'],
    fix: '`muster device reissue <device>`, then enroll again with the token that it prints.',
  },
  'R-NOTYET': {
    stage: 'tls',
    text: 'The certificate is not valid yet.',
    evidence: ['notBefore', 'now'],
    fix: 'Compare the clocks of the broker and of the enrollment service.',
  },
  'R-UNRECORDED': {
    stage: 'connect',
    text: 'The certificate chains to the device CA, but the registry has no record of it.',
    evidence: ['fingerprint', 'serial', 'waitedMs'],
    fix: 'Treat it as forged unless the registry was restored; `muster device reissue <device>` gives a recorded one.',
  },
  'R-HELD': {
    stage: 'connect',
    text: 'The device is under a hold.',
    evidence: ['hold', 'scope'],
    fix: '`muster release <hold>` lifts the hold; the device returns with the same certificate.',
  },
  'R-REVOKED': {
    stage: 'connect',
    text: 'The certificate has been revoked.',
    evidence: ['serial', 'revokedAt', 'reason'],
    fix: 'Revocation is final. `muster device reissue <device>` lets the device enroll again with a new key.',
  },
  'R-SUPERSEDED': {
    stage: 'connect',
    text: 'A newer certificate of the same device has replaced this one.',
    evidence: ['serial', 'supersededAt'],
    fix: 'Connect with the newer certificate. If the device did not do this, its old key may be in two places: `muster hold <device>`.',
  },
  'R-PENDING': {
    stage: 'connect',
    text: 'The device waits for an operator to approve it.',
    evidence: ['state'],
    fix: '`muster device approve <device>`, or `muster device reject <device>`.',
  },
  'R-RETIRED': {
    stage: 'connect',
    text: 'The device has been retired.',
    evidence: ['state'],
    fix: '`muster device reissue <device>` takes it back into service.',
  },
  'R-STALE': {
    stage: 'connect',
    text: 'The broker has not heard from the registry for longer than it may admit devices on its own.',
    evidence: ['silentMs', 'maxStalenessMs'],
    fix: 'Restore the connection from the broker to the enrollment service: `muster broker list`.',
  },
  'R-IDMISMATCH': {
    stage: 'connect',
    text: 'The client id is not the one that the certificate stands for.',
    evidence: ['clientId', 'expected'],
    fix: 'Use the device id as MQTT client id (a service may append `:` and a name).',
  },
  'R-FACTOR': {
    stage: 'connect',
    text: 'The certificate is good, but its service or fleet asks for a password or a token as well, and CONNECT brought none that holds.',
    evidence: ['factor', 'fault', 'why'],
    fix: 'Send the password, or a token that is current and for this device, as the password of CONNECT. `muster factor show` names what is asked for; `muster factor password` makes a new password. With the fault `keys` the broker cannot fetch them from their URL: `why` says what to mend there.',
  },
  'R-DUPLICATE': {
    stage: 'session',
    text: 'Another connection with the same identity took over.',
    evidence: ['address', 'otherAddress'],
    fix: 'Run one client per device. If there is only one, its key may be in two places: `muster hold <device>`.',
  },
  'R-CLONE': {
    stage: 'session',
    text: 'Two addresses take one identity from each other again and again: its key is in two places.',
    evidence: ['address', 'otherAddress', 'takeovers', 'withinS'],
    fix: '`muster hold <device>`, then find the copy. `muster device reissue <device>` gives the real one a new key.',
  },
  'R-RATE': {
    stage: 'enroll',
    text: 'Too many connections or failed requests came from this address, or too many connections with this certificate.',
    evidence: ['address', 'retryAfterS'],
    fix: 'Wait as long as the evidence says (over HTTP, Retry-After); look at the refusals before it for the cause, and let the client wait longer from one attempt to the next. docs/operations.md has the limits.',
  },
  'R-POLICY-PUB': {
    stage: 'session',
    text: 'The policy does not allow publishing to this topic, or not this message.',
    evidence: ['topic', 'reason', 'rule'],
    fix: 'Publish what `muster policy show <device>` grants, or change the policy: `muster policy apply`, of the fleet or, with --device, of the device or service alone.',
  },
  'R-POLICY-SUB': {
    stage: 'session',
    text: 'The policy does not allow this subscription.',
    evidence: ['filter', 'reason', 'rule'],
    fix: 'Subscribe to what `muster policy show <device>` grants, or change the policy: `muster policy apply`, of the fleet or, with --device, of the device or service alone.',
  },
  'R-WILL': {
    stage: 'connect',
    text: 'The will of the connection goes to a topic that the device may not publish to.',
    evidence: ['topic', 'reason', 'rule'],
    fix: 'Put the will on a topic, without wildcards, that `muster policy show <device>` lets it publish to.',
  },
  'R-QUOTA': {
    stage: 'session',
    text: 'The client has reached a limit of its policy or of the broker.',
    evidence: ['limit', 'allowed'],
    fix: 'Let the client ask for less, or raise the limit: in the policy that `rule` names (`muster policy apply`), or with `muster broker --limit <limit>=<n>`; docs/operations.md lists them.',
  },
  'R-PACKET': {
    stage: 'session',
    text: 'The client sent bytes that MQTT forbids, or more than the broker takes.',
    evidence: ['violation'],
    fix: 'Correct the client: the evidence names the rule that it broke.',
  },
  'R-TOKEN-UNKNOWN': {
    stage: 'enroll',
    text: 'The token is not one that this plane has issued.',
    evidence: ['address'],
    fix: 'Check that the token was copied whole; `muster token create --batch <batch> --uses 1` makes a new one.',
  },
  'R-TOKEN-SPENT': {
    stage: 'enroll',
    text: 'All uses of the token, or of the claim certificate, are spent.',
    evidence: ['token', 'uses'],
    fix: '`muster batch report <batch>` says who used it; `muster token create --batch <batch> --uses <n>`, or `muster batch claim`, makes another.',
  },
  'R-TOKEN-EXPIRED': {
    stage: 'enroll',
    text: 'The token, claim certificate or manufacturer has expired.',
    evidence: ['token', 'expiresAt'],
    fix: '`muster token create --batch <batch> --uses <n>`, or `muster batch claim`, or `muster manufacturer add`.',
  },
  'R-TOKEN-CANCELLED': {
    stage: 'enroll',
    text: 'The token, claim certificate or manufacturer has been cancelled.',
    evidence: ['token', 'cancelledAt'],
    fix: '`muster token create --batch <batch> --uses <n>`, when the device is trusted.',
  },
  'R-TOKEN-BATCH': {
    stage: 'enroll',
    text: 'The token, claim certificate or list of a manufacturer belongs to another batch than the EST label names.',
    evidence: ['token', 'label'],
    fix: 'Use the path of the batch that it was made for, or the path without a label.',
  },
  'R-TOKEN-TOMBSTONE': {
    stage: 'enroll',
    text: 'The device was revoked or retired; what enrolled it does not bring it back.',
    evidence: ['device', 'state'],
    fix: '`muster device reissue <device>`, then enroll with the token that it prints.',
  },
  'R-IDEVID': {
    stage: 'enroll',
    text: 'The certificate that the manufacturer gave to the device is not acceptable.',
    evidence: ['manufacturer', 'violation'],
    fix: 'Ask the manufacturer for a certificate as IEEE 802.1AR has it, issued by the CA that is registered: `muster manufacturer list`.',
  },
  'R-IDEVID-UNLISTED': {
    stage: 'enroll',
    text: 'The manufacturer is known, but the device is not on its list.',
    evidence: ['token', 'serialNumber', 'certificateSerial'],
    fix: '`muster manufacturer import <manufacturer> <file>` adds devices, with the numbers exactly as the certificate has them.',
  },
  'R-IDEVID-USED': {
    stage: 'enroll',
    text: 'The device has enrolled with its manufacturer’s certificate already, with another key.',
    evidence: ['token', 'device'],
    fix: '`muster device reissue <device>`, if it is the same device and has lost its key.',
  },
  'R-ID-TAKEN': {
    stage: 'enroll',
    text: 'A device with this id is enrolled already, with another key.',
    evidence: ['device'],
    fix: '`muster device reissue <device>` if this is the same device; otherwise give it another id.',
  },
  'R-REJECTED': {
    stage: 'enroll',
    text: 'An operator rejected the device that asked with this token and key.',
    evidence: ['token', 'key'],
    fix: 'If it was a mistake: `muster device add <device> --batch <batch> --spki <key>`, with the key of the evidence.',
  },
  'R-SUCCESSORS': {
    stage: 'enroll',
    text: 'The device asked for new certificates three times without connecting with one.',
    evidence: ['serial', 'unseen'],
    fix: 'Let the device connect with one of the certificates it has been given.',
  },
  'R-CSR-MALFORMED': {
    stage: 'enroll',
    text: 'The certificate signing request cannot be read.',
    evidence: ['violation'],
    fix: 'Send a PKCS#10 request in DER (base64) or PEM, at most 16 KiB.',
  },
  'R-CSR-KEY': {
    stage: 'enroll',
    text: 'The key of the request is not acceptable.',
    evidence: ['key', 'why', 'fleet', 'allowed'],
    fix: 'Make a new key on the device, of a type that its fleet allows: `muster fleet profile show <fleet>`.',
  },
  'R-CSR-SUBJECT': {
    stage: 'enroll',
    text: 'The request asks for a name or an extension that the device cannot have.',
    evidence: ['wish'],
    fix: 'Ask for no more than `CN=<device>`; everything else comes from the profile of the fleet.',
  },
  'R-CSR-POP': {
    stage: 'enroll',
    text: 'The signature of the request was not made with the key in it.',
    evidence: [],
    fix: 'Sign the request with the private key that belongs to it.',
  },
  'R-CSR-LINK': {
    stage: 'enroll',
    text: 'The request is not linked to the TLS connection that it came over.',
    evidence: ['why', 'fleet'],
    fix: 'Send the tls-unique of the connection, in base64, as challengePassword, over TLS 1.2 with the extended master secret; or take `linkedToTls` out of the profile of the fleet.',
  },
  'R-SERVER-KEY': {
    stage: 'enroll',
    text: 'The device asked the plane to make its key, and the profile of its fleet does not allow that, or not in this way.',
    evidence: ['why', 'fleet'],
    fix: 'Let the device make its key and use `simpleenroll`; or set `serverKeys` in the profile of the fleet, and ask for a key without encryption of its own.',
  },
} as const satisfies Record<RefusalCode, RefusalRow>

/** The refusal code of an error code: `token_spent` becomes `R-TOKEN-SPENT`. */
export function refusalCode(code: RefusalErrorCode): RefusalCode {
  return `R-${code.toUpperCase().replaceAll('_', '-')}` as RefusalCode // the type is this line, spelled in types
}

/** True for the text of a code in the table. */
export function isRefusalCode(text: string): text is RefusalCode {
  return Object.hasOwn(REFUSALS, text)
}

/** True when an error code is one of the refusals. */
export function isRefusalErrorCode(code: string): code is RefusalErrorCode {
  return isRefusalCode(refusalCode(code as RefusalErrorCode)) // checked by the lookup that it feeds
}
