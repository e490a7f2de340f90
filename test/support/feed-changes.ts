/** Changes of the registry as a broker gets them, with what a test does not care about filled in. */
import type {
  CertificateRecord,
  Change,
  DeviceRecord,
  FleetRecord,
  HoldRecord,
  IssuerRecord,
} from '#shared/feed'
import type { TestIdentity } from './pki.ts'

const DAY_MS = 86_400_000

/** Of fleet `default` and no batch, active. */
export function deviceChange(id: string, fields: Partial<DeviceRecord> = {}): Change {
  return {
    kind: 'device',
    device: { id, kind: 'device', fleet: 'default', batch: null, state: 'active', ...fields },
  }
}

/** Of issuer `aa`, issued, valid from 1970 for 200 years. */
export function certificateChange(
  fingerprint: string,
  device: string,
  fields: Partial<CertificateRecord> = {},
): Change {
  const life = {
    notBefore: 0,
    notAfter: 73_000 * DAY_MS,
    supersededFrom: null,
    revokedAt: null,
    reason: null,
  }
  const certificate = {
    fingerprint,
    serial: fingerprint,
    issuer: 'aa',
    device,
    state: 'issued',
    ...life,
  } as const
  return { kind: 'certificate', certificate: { ...certificate, ...fields } }
}

/** The certificate of a real identity. */
export function identityChange(identity: TestIdentity, fields: Partial<CertificateRecord> = {}): Change {
  const { id, fingerprint, serial, issuer, notBefore, notAfter } = identity
  return certificateChange(fingerprint, id, { serial, issuer, notBefore, notAfter, ...fields })
}

export function fleetChange(id = 'default', policy: Partial<FleetRecord['policy']> = {}): Change {
  const rules = { publish: [`devices/\${device.id}/#`], subscribe: [`devices/\${device.id}/#`], ...policy }
  return { kind: 'fleet', fleet: { id, policy: rules, policyEpoch: 1 } }
}

export function issuerChange(id = 'aa', fields: Partial<IssuerRecord> = {}): Change {
  return { kind: 'issuer', issuer: { id, pem: `pem of ${id}`, trusted: true, ...fields } }
}

export function holdChange(
  id: string,
  scope: HoldRecord['scope'],
  state: HoldRecord['state'] = 'active',
): Change {
  return { kind: 'hold', hold: { id, scope, state } }
}

export function membersChange(hold: string, devices: string[]): Change {
  return { kind: 'members', hold, devices }
}

/** One issuer, one fleet, and for each id a device with a certificate whose fingerprint is `fingerprintOf(id)`. */
export function smallRegistry(devices: readonly string[] = ['lamp']): Change[] {
  return [
    issuerChange(),
    fleetChange(),
    ...devices.flatMap((id) => [deviceChange(id), certificateChange(fingerprintOf(id), id)]),
  ]
}

/** Hex that stands for the certificate of a made-up device. */
export function fingerprintOf(id: string): string {
  return Buffer.from(id).toString('hex')
}
