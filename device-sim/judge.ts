import { type AdminClient, openAdminClient, readOperatorProfile } from '#shared/admin-client'
import type { DeviceDetail, Receipt } from '#shared/api'
import { isMusterError } from '#shared/errors'
import type { Ready } from '#shared/layout'
import { generateKey, privateKeyPem } from '#shared/pki/keys'
import { splitPem } from '#shared/pki/pem'
import { createCsr } from '#shared/pki/x509'
import { awaitSessions, countSessions } from './broker-count.ts'
import { type Clock, untilSeen } from './clock.ts'
import { listedOnCrl } from './crl.ts'
import type { Device } from './device.ts'
import { inParallel } from './fleet.ts'
import { checkPair, inspectPairs, type PairVerdict } from './judge-pairs.ts'
import { openLink } from './mqtt-link.ts'
import type { Finding } from './verdict.ts'
import { Witness } from './witness.ts'

export interface JudgeOptions {
  readonly ready: Ready
  /** PEM of the root. */
  readonly root: string
  readonly clock: Clock
  /** Tells two runs at the same plane apart. */
  readonly run: string
}

/** A revocation that was asked for, and what the judge saw of it. */
export interface Revocation {
  readonly devices: ReadonlySet<Device>
  readonly requestedAt: number
  readonly receipt: Receipt
  readonly sessions: { readonly before: number; readonly after: number }
  readonly closedAfterMs: ReadonlyMap<Device, number>
}

const SERVICE = 'sim-judge'
/** Demo devices live a day. */
const LIFETIME_MS = 24 * 3_600_000
const ADMIN_CONCURRENCY = 8
/** Pairs of devices that are not revoked with which the judge connects. */
const SAMPLE = 20
const SIGHTINGS_DEADLINE_MS = 10_000
const LOOK_EVERY_MS = 100

/**
 * Plays operator and referee. It alone uses the admin API; of the devices it takes no word but what they say they
 * have sent, and looks for everything else in the registry, at the broker and on the devices' disks.
 */
export class Judge {
  readonly witness: Witness
  readonly #admin: AdminClient
  readonly #options: JudgeOptions
  readonly #serialsBefore = new Map<Device, string | null>()

  private constructor(options: JudgeOptions, parts: { admin: AdminClient; witness: Witness }) {
    this.#options = options
    this.#admin = parts.admin
    this.witness = parts.witness
  }

  /** @throws MusterError unreachable, not_found (the operator's profile), forbidden */
  static async open(options: JudgeOptions): Promise<Judge> {
    const { ready, root, clock, run } = options
    const admin = openAdminClient(readOperatorProfile(ready.operatorProfile))
    try {
      const key = generateKey()
      const csr = (await createCsr({ key, commonName: SERVICE })).pem
      const { certificate, chain } = await admin.createService({ id: SERVICE, csr })
      const witness = await Witness.open(
        {
          url: ready.broker,
          ca: root,
          clientId: `${SERVICE}:${run}`,
          certificate: [certificate, ...chain.slice(0, 1)].join('\n'),
          key: privateKeyPem(key),
        },
        { clock, openLink },
      )
      return new Judge(options, { admin, witness })
    } catch (error) {
      await admin.close()
      throw error
    }
  }

  /** A token for so many devices of the fleet; the fleet is made when it is missing. */
  async token(fleet: string, uses: number): Promise<string> {
    const batch = `${fleet}-sim`
    await unlessThere(this.#admin.createFleet({ id: fleet, lifetimeMs: LIFETIME_MS, synthetic: true }))
    await unlessThere(this.#admin.createBatch({ id: batch, fleet, naming: 'csr' }))
    return (await this.#admin.createToken({ batch, uses })).token
  }

  /** Remembers which certificates the devices have now. */
  noteSerials(devices: readonly Device[]): void {
    for (const device of devices) {
      this.#serialsBefore.set(device, this.#serialOf(device.credentials.directory))
    }
  }

  /**
   * Revokes the devices for good, and times what follows.
   * @param seeClose resolves with the time at which the socket of a device closed, or null
   */
  async revoke(
    devices: ReadonlySet<Device>,
    seeClose: (device: Device) => Promise<number | null>,
  ): Promise<Revocation> {
    const { clock } = this.#options
    const knock = () => this.witness.knock()
    const before = await countSessions(this.#admin, { knock, clock })
    const ids = [...devices].map(({ id }) => id)
    const plan = await this.#admin.proposePlan({ action: 'revoke', devices: ids, undoMs: 0 })
    const seen = Promise.all([...devices].map(async (device) => ({ device, at: await seeClose(device) })))
    const requestedAt = clock.now()
    await this.#admin.applyPlan(plan.id, plan.counts.devices)
    const closedAfterMs = new Map<Device, number>()
    for (const { device, at } of await seen) if (at !== null) closedAfterMs.set(device, at - requestedAt)
    const receipt = await this.#admin.receipt(plan.id)
    const expected = before - devices.size
    const after = await awaitSessions(this.#admin, { expected, knock, clock })
    return { devices, requestedAt, receipt, sessions: { before, after }, closedAfterMs }
  }

  /** Looks at every device, after the fleet has disconnected. */
  async findings(devices: readonly Device[], revocation: Revocation | null): Promise<Finding[]> {
    const kept = devices.filter((device) => !revocation?.devices.has(device))
    const asked = new Set([...kept.slice(0, SAMPLE), ...(revocation?.devices ?? [])])
    const pairs = await this.#inspect(devices, asked)
    const until = this.#options.clock.now() + SIGHTINGS_DEADLINE_MS
    const findings: Finding[] = []
    await inParallel(devices, {
      limit: ADMIN_CONCURRENCY,
      work: async (device) => {
        const pair = pairs.get(device.id)
        if (!pair) return
        const { last, unacknowledged } = device.outbox
        const isRevoked = revocation?.devices.has(device) ?? false
        const after = device.refusals.find(({ at }) => revocation && at > revocation.requestedAt)
        findings.push({
          id: device.id,
          isRevoked,
          claim: { last, unacknowledged },
          missing: this.witness.missing(device.id, last),
          serialBefore: this.#serialsBefore.get(device) ?? null,
          pair,
          certificates: (await this.#record(pair, { until, isRevoked }))?.certificates ?? [],
          isAsked: asked.has(device),
          closedAfterMs: revocation?.closedAfterMs.get(device) ?? null,
          ownReturnCode: after?.returnCode ?? null,
        })
      },
    })
    return findings
  }

  /** How many of the revoked devices' certificates the CRL lists. */
  listedOnCrl({ devices }: Revocation): Promise<number> {
    const revoked = [...devices].map(({ credentials }) => {
      const [, issuer = ''] = splitPem(credentials.current()?.certificate ?? '')
      return { serial: this.#serialOf(credentials.directory) ?? '', issuer }
    })
    return listedOnCrl(revoked, { http: this.#options.ready.http, clock: this.#options.clock })
  }

  async close(): Promise<void> {
    await this.witness.end()
    await this.#admin.close()
  }

  async #inspect(
    devices: readonly Device[],
    asked: ReadonlySet<Device>,
  ): Promise<ReadonlyMap<string, PairVerdict>> {
    const verdicts = await inspectPairs({
      broker: this.#options.ready.broker,
      root: this.#options.root,
      devices: devices.map((device) => ({
        id: device.id,
        directory: device.credentials.directory,
        connect: asked.has(device),
      })),
    })
    return new Map(verdicts.map((verdict) => [verdict.id, verdict]))
  }

  /** The registry's view, once the broker's report of the certificate's first use, or its final revocation, is in it. */
  async #record(
    pair: PairVerdict,
    { until, isRevoked }: { until: number; isRevoked: boolean },
  ): Promise<DeviceDetail | null> {
    let last: DeviceDetail | null = null
    const isSeen = ({ certificates }: DeviceDetail) =>
      certificates.some(
        ({ serial, firstSeenAt, state }) =>
          serial === pair.serial && firstSeenAt !== null && (!isRevoked || state === 'revoked'),
      )
    await untilSeen(
      async () => {
        last = await this.#admin.showDevice(pair.id).catch(absent)
        return last && isSeen(last) ? last : null
      },
      { ms: until - this.#options.clock.now(), everyMs: LOOK_EVERY_MS, clock: this.#options.clock },
    )
    return last
  }

  #serialOf(directory: string): string | null {
    return checkPair(directory, { root: this.#options.root, now: this.#options.clock.now() }).serial
  }
}

/** Passes over `conflict`: somebody has made it before. */
async function unlessThere(making: Promise<unknown>): Promise<void> {
  try {
    await making
  } catch (error) {
    if (!isMusterError(error, 'conflict')) throw error
  }
}

function absent(error: unknown): null {
  if (isMusterError(error, 'not_found')) return null
  throw error
}
