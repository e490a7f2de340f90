import type { Evidence } from '#shared/errors'

/** By the names of OpenSSL's `sslerr.h`, without `ERR_SSL_`; the first that fits counts. Alerts are what the client says (RFC 8446 section 6). */
const MEANINGS: readonly (readonly [RegExp, string])[] = [
  [/ALERT_UNKNOWN_CA/, 'the client does not trust the root of this plane'],
  [/ALERT_CERTIFICATE_EXPIRED/, 'to the clock of the client the certificate of the broker has expired'],
  [/ALERT_.*CERTIFICATE/, 'the client refuses the certificate of the broker'],
  [
    /WRONG_VERSION_NUMBER|HTTPS?_(PROXY_)?REQUEST|UNKNOWN_PROTOCOL|PACKET_LENGTH|BAD_RECORD_TYPE/,
    'it is not TLS',
  ],
  [/UNSUPPORTED_PROTOCOL|PROTOCOL_VERSION|VERSION_TOO_LOW/, 'it offers neither TLS 1.2 nor 1.3'],
  [/NO_APPLICATION_PROTOCOL/, 'it offers no protocol (ALPN) of this port'],
  [
    /NO_SHARED_(CIPHER|GROUP)|KEY_SHARE/,
    'it offers no AEAD cipher suite, or no key exchange, of this broker',
  ],
]

/** What a failed handshake failed of; null when the client just went away or was silent, as a port check does. */
export function handshakeFault({ code = '' }: NodeJS.ErrnoException): Evidence | null {
  const [, name] = /^ERR_SSL_([\w/]{1,80})$/.exec(code) ?? []
  if (name === undefined) return null
  const [, means] = MEANINGS.find(([pattern]) => pattern.test(name)) ?? []
  const fault = name.toLowerCase()
  return means === undefined ? { fault } : { fault, means }
}
