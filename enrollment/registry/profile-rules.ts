import { isIP } from 'node:net'
import type { FleetProfile } from '#shared/api'
import { MusterError } from '#shared/errors'
import type { DeviceWish, IssuedNames, SanName } from './records.ts'
import { validity } from './validity.ts'

/** Whose certificate it is, as far as templates can say it. */
export interface Subject {
  readonly id: string
  readonly fleet: string
  readonly batch: string | null
}

/** RFC 5280 appendix A.1: ub-organization-name. */
const MAX_NAME = 64
/** Letters, digits and inner hyphens in labels of at most 63 (RFC 1123 section 2.1). */
const DNS_NAME = /^(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$/i
/** RFC 3986 characters, with a scheme other than that of our own identities. */
const URI = /^(?!spiffe:)[a-z][a-z0-9+.-]*:[a-z0-9._~:/?#@!$&'()*+,;=%[\]-]+$/i
/** Printable, without what other software might take for the end of a name. */
const NAME = /^[^\p{C}]+$/u

/**
 * The names that the profile gives a device.
 * @throws MusterError csr_subject when a template makes no name for this device
 */
export function namesOf({ subject, san }: FleetProfile, of: Subject): IssuedNames {
  const name = (template: string | undefined) =>
    template === undefined
      ? null
      : rendered(template, of, (text) => text.length <= MAX_NAME && NAME.test(text))
  return {
    subject: {
      organization: name(subject.organization),
      organizationalUnit: name(subject.organizationalUnit),
    },
    names: san.map((one): SanName => {
      if ('uri' in one) return { uri: rendered(one.uri, of, (text) => URI.test(text)) }
      return { host: rendered(one.dns, of, (text) => DNS_NAME.test(text) && isIP(text) === 0) }
    }),
  }
}

function rendered(template: string, of: Subject, isFit: (text: string) => boolean): string {
  const values = new Map<string, string | null>([
    ['device.id', of.id],
    ['device.fleet', of.fleet],
    ['device.batch', of.batch],
  ])
  const text = template.replaceAll(/\$\{([^}]*)\}/g, (whole, name: string) => values.get(name) ?? whole)
  if (!text.includes('${') && isFit(text)) return text
  throw outside(of, { wish: template, why: 'the profile of the fleet makes no name of it for this device' })
}

/**
 * Is what the device asks for what the profile grants? It may ask for less: the certificate has all of it.
 * @throws MusterError csr_key, csr_link, csr_subject, server_key
 */
export function refuseOutside(
  profile: FleetProfile,
  { of, wish, granted }: { of: Subject; wish: DeviceWish; granted: IssuedNames },
): void {
  if (wish.serverKey && !profile.serverKeys) {
    const why = `the profile of the fleet "${of.fleet}" does not allow it`
    throw new MusterError('server_key', `Cannot make a key for "${of.id}": ${why}`, {
      evidence: { why, fleet: of.fleet },
    })
  }
  if (!profile.keys.includes(wish.key.type)) {
    throw new MusterError(
      'csr_key',
      `Cannot certify a ${wish.key.name} key for "${of.id}": the profile of the fleet "${of.fleet}" does not allow it`,
      { evidence: { key: wish.key.name, fleet: of.fleet, allowed: profile.keys.join(', ') } },
    )
  }
  if (profile.linkedToTls && wish.unlinked !== null) {
    throw new MusterError(
      'csr_link',
      `Cannot issue for "${of.id}": the fleet "${of.fleet}" demands requests that are linked to their connection, and ${wish.unlinked}`,
      { evidence: { why: wish.unlinked, fleet: of.fleet } },
    )
  }
  const names = granted.names.map((name) => ('uri' in name ? `URI:${name.uri}` : `DNS:${name.host}`))
  const foreign = wish.names.find((name) => !names.includes(name))
  if (foreign !== undefined)
    throw outside(of, { wish: `SAN ${foreign}`, why: 'the profile does not name it' })
  for (const attribute of ['organization', 'organizationalUnit'] as const) {
    const [asked, given] = [wish[attribute], granted.subject[attribute]]
    if (given === null || asked === null || asked === given) continue // without a template it is passed over
    throw outside(of, { wish: `${attribute} ${asked}`, why: `the profile says "${given}"` })
  }
}

function outside(of: Subject, { wish, why }: { wish: string; why: string }): MusterError {
  const shown = wish.slice(0, 120)
  return new MusterError('csr_subject', `Cannot issue for "${of.id}" with "${shown}": ${why}`, {
    evidence: { wish: shown, why, fleet: of.fleet },
  })
}

/** Dates of a certificate and of the window in which its device is to ask for the next, ms since 1970. */
export interface Dates {
  readonly notBefore: number
  readonly notAfter: number
  readonly renewAfter: number
  readonly renewBefore: number
}

/** The jitter comes from the serial, which is random: the same reservation always has the same dates. */
export function datesOf(
  { lifetimeMs, lifetimeJitter, renewal }: FleetProfile,
  of: { now: number; serial: string; issuerNotAfter: number },
): Dates {
  const { now, serial, issuerNotAfter } = of
  const shortened = lifetimeMs * (1 - lifetimeJitter * fraction(serial, 8))
  const { notBefore, notAfter } = validity({ now, lifetimeMs: shortened, issuerNotAfter })
  const at = (share: number) => Math.floor(now + (notAfter - now) * share)
  return {
    notBefore,
    notAfter,
    renewAfter: at(renewal.after + renewal.jitter * fraction(serial, 16)),
    renewBefore: at(renewal.before),
  }
}

/** 32 bits of the serial from a hex digit on, as a number from 0 up to 1. */
function fraction(serial: string, digit: number): number {
  return Number.parseInt(serial.slice(digit, digit + 8), 16) / 2 ** 32
}
