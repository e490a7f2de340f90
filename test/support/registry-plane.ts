import { createHash } from 'node:crypto'
import type { CertificateView } from '#shared/api'
import type { Report, ReportBatch } from '#shared/feed'
import type { DeviceId } from '#shared/identity/device'
import type {
  Application,
  DeviceWish,
  EnrollmentIntent,
  Issuance,
  NewPlan,
  NewToken,
  Registry,
  RenewalIntent,
} from '../../enrollment/registry/registry.ts'

export const HOUR_MS = 3_600_000
export const DAY_MS = 24 * HOUR_MS
/** A whole second, so that dates in tests read as they are stored. */
export const BEGIN = Date.UTC(2026, 0, 1)

export const hex = (text: string) => createHash('sha256').update(text).digest('hex')
/** Tests write ids that are valid; the brand is given at the edge, which they do not pass. */
export const deviceId = (text: string) => text as DeviceId

/** A request that every profile grants. */
export const PLAIN_WISH: DeviceWish = {
  key: { type: 'P-256', name: 'P-256' },
  names: [],
  organization: null,
  organizationalUnit: null,
  unlinked: 'no connection',
}

/** A clock and a source of names around a registry, so that a test says only what it is about. */
export function planeOf(registry: Registry, name = 'a') {
  let now = BEGIN
  let serials = 0
  let sequence = 0
  const issuer = { id: hex('device CA'), notAfter: BEGIN + 3650 * DAY_MS }
  const act = () => ({ now, by: 'operator:test' })
  const serial = () => hex(`serial ${name} ${++serials}`).slice(0, 32)

  const intent = (of: { token: string; key: string } & Partial<EnrollmentIntent>): EnrollmentIntent => {
    const { token, key, ...rest } = of
    return {
      now,
      tokenHash: hex(token),
      spkiHash: hex(key),
      commonName: null,
      label: null,
      assignedId: deviceId(`assigned-${name}-${serials}`),
      wish: PLAIN_WISH,
      serial: serial(),
      issuer,
      ...rest,
    }
  }
  const renewal = (presented: string, key: string): RenewalIntent => ({
    now,
    presented,
    spkiHash: hex(key),
    wish: PLAIN_WISH,
    serial: serial(),
    issuer,
  })

  const plane = {
    registry,
    issuer,
    act,
    serial,
    now: () => now,
    /** Moves the clock. */
    pass(ms: number) {
      now += ms
    },
    intent,
    renewal,
    token: (id: string, of: Partial<NewToken> = {}) =>
      registry.createToken({
        ...act(),
        id,
        hash: hex(id),
        batch: 'lab',
        uses: 1,
        expiresAt: null,
        devices: null,
        naming: null,
        approval: false,
        ...of,
      }),
    reissue: (id: string, device: string) =>
      registry.createReissue({ ...act(), id, hash: hex(id), device: deviceId(device), expiresAt: null }),
    /** The DER is made up, the registry does not look into it. */
    sign: ({ serial }: Pick<Issuance, 'serial'>) => ({
      der: Buffer.from(`certificate ${serial}`),
      fingerprint: hex(`certificate ${serial}`),
    }),
    /** Signs what was reserved. */
    async finish(issuance: Issuance) {
      const signed = plane.sign(issuance)
      await registry.finishIssuance(issuance.serial, signed, act())
      return { ...issuance, fingerprint: signed.fingerprint }
    },
    begin: (token: string, device: string, key: string) =>
      plane.beginIssuance(intent({ token, key, commonName: deviceId(device) })),
    /** Where nobody has to approve. */
    async beginIssuance(request: EnrollmentIntent): Promise<Issuance> {
      const begun = await registry.beginIssuance(request)
      if ('waitsFor' in begun) throw new Error(`${begun.device} waits for approval`)
      return begun
    },
    /** Where somebody has to. */
    async apply(token: string, device: string, key: string): Promise<Application> {
      const begun = await registry.beginIssuance(intent({ token, key, commonName: deviceId(device) }))
      if ('waitsFor' in begun) return begun
      throw new Error(`${begun.device} waits for nobody`)
    },
    enrollWith: async (token: string, device: string, key: string) =>
      plane.finish(await plane.begin(token, device, key)),
    /** A device of the batch with a token and a key of its own. */
    async enroll(device: string, batch = 'lab') {
      await plane.token(`token of ${device}`, { batch })
      return plane.enrollWith(`token of ${device}`, device, `key of ${device}`)
    },
    async renew(presented: string, key: string) {
      return plane.finish(await registry.beginRenewal(renewal(presented, key)))
    },
    async service(id: string, key: string) {
      const service = { ...act(), id: deviceId(id), spkiHash: hex(key), serial: serial(), issuer }
      return plane.finish(await registry.beginService(service))
    },
    async certificate(fingerprint: string): Promise<CertificateView> {
      const credential = await registry.findCredential({ fingerprint })
      if (credential === null) throw new Error(`no certificate ${fingerprint}`)
      return credential.certificate
    },

    async broker(id = 'b1') {
      await registry.invite({ ...act(), id, hash: hex(`invitation of ${id}`), expiresAt: now + HOUR_MS })
      return registry.acceptInvitation({
        hash: hex(`invitation of ${id}`),
        spkiHash: hex(`key of ${id}`),
        now,
      })
    },
    batch: (of: Partial<ReportBatch> = {}): ReportBatch => ({
      boot: 'boot-1',
      sequence: ++sequence,
      at: now,
      applied: null,
      sessions: 0,
      url: 'mqtts://localhost:8883',
      reports: [],
      ...of,
    }),
    report: (reports: Report[], of: Partial<ReportBatch> & { broker?: string } = {}) => {
      const { broker = 'b1', ...batch } = of
      return registry.applyReports(broker, plane.batch({ reports, ...batch }), DAY_MS, now)
    },
    connected: (of: { fingerprint: string; device: string }, connection = 'c1'): Report => ({
      type: 'connected',
      at: now,
      fingerprint: of.fingerprint,
      device: of.device,
      address: '192.0.2.1',
      connection,
      resumed: false,
    }),
    disconnected: (of: { fingerprint: string; device: string }, connection = 'c1'): Report => ({
      type: 'disconnected',
      at: now,
      fingerprint: of.fingerprint,
      device: of.device,
      connection,
      reason: 'client',
    }),
    applied: (hold: string, of: Partial<Extract<Report, { type: 'applied' }>> = {}): Report => ({
      type: 'applied',
      at: now,
      hold,
      position: 1,
      sessionsClosed: 0,
      closeMs: { p50: 0, p95: 0, max: 0 },
      survivors: [],
      ...of,
    }),

    propose: (id: string, target: NewPlan['target'], of: Partial<NewPlan> = {}) =>
      registry.proposePlan({
        ...act(),
        id,
        action: 'hold',
        target,
        reason: 'unspecified',
        undoMs: 900_000,
        purgeRetained: false,
        expiresAt: now + HOUR_MS,
        ...of,
      }),
    /** Puts a hold in force. */
    async hold(id: string, target: NewPlan['target'], of: Partial<NewPlan> = {}) {
      const plan = await plane.propose(id, target, of)
      return registry.applyPlan(id, plan.counts.devices, act())
    },
    /** Revokes for good: a plan without undo time, and all its slices. */
    async revoke(id: string, target: NewPlan['target'], of: Partial<NewPlan> = {}) {
      await plane.hold(id, target, { action: 'revoke', undoMs: 0, ...of })
      await plane.finalise(id)
    },
    async finalise(id: string, limit = 100) {
      await registry.beginFinalising(id, act())
      for (let done = false; !done; ) ({ done } = await registry.finaliseSlice(id, limit, act()))
    },
  }
  return plane
}
export type Plane = ReturnType<typeof planeOf>

export const device = (...ids: string[]) => ({ devices: ids.map(deviceId) })
