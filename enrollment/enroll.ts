import type { FleetProfile } from '#shared/api'
import type { DeviceId } from '#shared/identity/device'
import type { Channel } from './channel.ts'
import type { Deps } from './deps.ts'
import { checkUris, completed, type Issued, newSerial, signNow } from './issuance.ts'
import { type KeyMaker, keyedRequest, keysOf, wishOf } from './keyed-request.ts'
import type { Application, Idevid } from './registry/registry.ts'

export interface EnrollmentRequest {
  /** SHA-256 of the token, of the claim certificate, or what stands for the manufacturer; hex. */
  readonly tokenHash: string
  /** PKCS#10, DER. */
  readonly csr: Uint8Array
  /** The EST label, which must name the token's batch; null without one. */
  readonly label: string | null
  readonly channel: Channel
  /** What the certificate of the device's manufacturer says. */
  readonly idevid?: Idevid
  /** The device, when it is not said. */
  readonly keyBy?: KeyMaker
}

/**
 * The first certificate of a device; the numbers are those of docs/issuance-cycle.md. The same token and key again
 * get the same certificate. Where an operator has to approve the device: an application, until that has happened; the
 * request is checked whole each time.
 * With a key that the plane makes, each request gets a new one, and its certificate takes the place of the one before
 * it, as long as no broker has seen that.
 * @throws MusterError csr_*, server_key, successors, token_*, idevid_*, id_taken, held, pending, rejected, clock_wrong
 */
export async function enroll(deps: Deps, request: EnrollmentRequest): Promise<Issued | Application> {
  // 1 check the request: limits, structure, key, proof of possession, wishes
  const { csr: der, keyBy = 'device', channel, ...presented } = request
  const csr = await keyedRequest(deps, { csr: der, keyBy, profile: () => profileOf(deps, request.tokenHash) })
  checkUris(deps, csr)
  const now = deps.now()
  deps.signingClock.check(now)
  deps.reached('enroll.1')

  // 2 spend one use of the token and record what will be signed; a key in memory signs in the same commit
  const signing = { recipe: 'enroll', spki: csr.spki } as const
  const issuance = await deps.registry.beginIssuance(
    {
      now,
      ...presented,
      ...keysOf(csr),
      commonName: csr.commonName,
      assignedId: assignedId(deps),
      wish: wishOf(csr, channel),
      serial: newSerial(deps),
      issuer: deps.authority.device,
    },
    signNow(deps, signing),
  )
  if ('waitsFor' in issuance) return issuance

  // 3 sign and 4 record the certificate, where that is still to do; from here on brokers know it
  const certificate = await completed(deps, { issuance, signing, by: `device:${issuance.device}` })
  deps.reached('enroll.4')

  // 5 answer
  return { issuance, certificate, privateKey: csr.privateKey }
}

/** 50 random bits: short enough to read out, and the registry refuses one that is taken. */
function assignedId(deps: Deps): DeviceId {
  return `d-${deps.random(6).toString('hex')}` as DeviceId // `d-` and hex digits have the form of an id
}

async function profileOf({ registry, now }: Deps, tokenHash: string): Promise<FleetProfile> {
  const token = await registry.findToken(tokenHash, now())
  return registry.profileFor(token?.batch ?? null)
}
