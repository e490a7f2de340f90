import { execFileSync } from 'node:child_process'
import { type KeyObject, X509Certificate } from 'node:crypto'
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { isMusterError } from '#shared/errors'
import type { Report } from '#shared/feed'
import { generateKey, sha256Hex } from '#shared/pki/keys'
import { derToPem, splitPem } from '#shared/pki/pem'
import { createCsr } from '#shared/pki/x509'
import { openAuthority } from '../../enrollment/ca/create-ca.ts'
import type { Deps } from '../../enrollment/deps.ts'
import { enroll } from '../../enrollment/enroll.ts'
import type { Issued } from '../../enrollment/issuance.ts'
import { renew } from '../../enrollment/renew.ts'
import { cutOver, finishRollover, rolloverStatus, startRollover } from '../../enrollment/rollover.ts'
import { createToken } from '../../enrollment/tokens.ts'
import { caAlarms, caReply, noteAdoption } from '../../enrollment/trust.ts'
import { type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'

const NO_CHANNEL = { tlsUnique: null, why: 'no connection' } as const
const DAY_MS = 86_400_000
const DAYS = 740
const DEVICES = 8
/** Of the CAs of the first start; short enough that three of them end. */
const ROOT_DAYS = 720
const ISSUING_DAYS = 300
/** Before this day the last device never fetches a bundle: only the links between the roots keep it. */
const LATE_DAY = 715

const by = 'operator:test'

t.setTimeout(300_000)

/** A device as far as trust goes: what it presents, and which roots it believes. */
interface SimulatedDevice {
  readonly id: string
  readonly fetchesFrom: number
  certificate: X509Certificate
  issuer: X509Certificate
  roots: readonly string[]
  renewAfter: number
  bundle: number
}

/** What the brokers were told, in the order of the feed. */
interface SimulatedBroker {
  position: number
  readonly trusted: Map<string, X509Certificate>
  readonly root: string
}

const signed = new Map<string, boolean>()
function isSignedBy(below: X509Certificate, above: X509Certificate): boolean {
  const key = `${below.fingerprint256} ${above.fingerprint256}`
  const known = signed.get(key) ?? (below.checkIssued(above) && below.verify(above.publicKey))
  signed.set(key, known)
  return known
}

function isValid(certificate: X509Certificate, now: number): boolean {
  return certificate.validFromDate.getTime() <= now && now <= certificate.validToDate.getTime()
}

/** True when the certificate leads over some of the others to one of the roots, all of them valid now. */
function leadsTo(
  roots: readonly X509Certificate[],
  path: { leaf: X509Certificate; others: readonly X509Certificate[]; now: number },
): boolean {
  const { leaf, others, now } = path
  if (!isValid(leaf, now)) return false
  if (roots.some((root) => isValid(root, now) && isSignedBy(leaf, root))) return true
  const rest = (above: X509Certificate) => others.filter((one) => one !== above)
  return others.some(
    (above) => isSignedBy(leaf, above) && leadsTo(roots, { leaf: above, others: rest(above), now }),
  )
}

const parsed = new Map<string, X509Certificate>()
function parse(pems: readonly string[]): X509Certificate[] {
  return pems.map((pem) => {
    const certificate = parsed.get(pem) ?? new X509Certificate(pem)
    parsed.set(pem, certificate)
    return certificate
  })
}

/** The service with CAs that end within the two years. */
async function startShort(t: Parameters<typeof startEnrollment>[0], clock: { offsetMs: number }) {
  const data = t.testdir()
  const directory = join(data, 'plane', 'ca')
  mkdirSync(directory, { recursive: true, mode: 0o700 })
  chmodSync(directory, 0o700)
  const passphrase = 'a long passphrase for a short test'
  writeFileSync(join(directory, 'passphrase'), `${passphrase}\n`, { mode: 0o600 })
  await openAuthority({
    directory,
    passphrase,
    trustDomain: 'muster.local',
    httpBase: 'http://localhost:8080',
    now: Date.now(),
    lifetimes: { rootMs: ROOT_DAYS * DAY_MS, issuingMs: ISSUING_DAYS * DAY_MS },
  })
  return startEnrollment(t, { data, clock })
}

class Fleet {
  readonly devices: SimulatedDevice[] = []
  readonly lost: string[] = []
  readonly broker: SimulatedBroker
  readonly #service: RunningEnrollment
  #sequence = 0

  constructor(service: RunningEnrollment) {
    this.#service = service
    this.broker = { position: 0, trusted: new Map(), root: service.root }
  }

  get #deps(): Deps {
    return this.#service.deps
  }

  async begin(): Promise<void> {
    const { registry, now } = this.#deps
    const spkiHash = 'a'.repeat(64)
    await registry.invite({ id: 'b1', hash: 'b'.repeat(64), expiresAt: now() + DAY_MS, now: now(), by })
    await registry.acceptInvitation({ hash: 'b'.repeat(64), spkiHash, now: now() })
    for (let number = 1; number <= DEVICES; number++) await this.#enroll(`pump-${number}`, number)
  }

  async #enroll(id: string, number: number): Promise<void> {
    const deps = this.#deps
    const { token } = await createToken(deps, { batch: 'lab', uses: 1, by })
    const tokenHash = sha256Hex(token)
    const csr = await request(id, generateKey())
    const issued = await enroll(deps, { tokenHash, csr, label: null, channel: NO_CHANNEL })
    if (!('certificate' in issued)) throw new Error('nobody has to approve it')
    const fetchesFrom = number === DEVICES ? LATE_DAY : 0
    const device = { id, fetchesFrom, roots: splitPem(this.#service.root), bundle: 1, ...this.#held(issued) }
    this.devices.push(device)
    await this.#seen(device)
  }

  #held(issued: Issued) {
    const [issuer = ''] = this.#deps.authority.deviceChain(issued.issuance.issuer)
    const { renewAfter } = issued.issuance
    const certificate = new X509Certificate(derToPem(issued.certificate, 'CERTIFICATE'))
    return { certificate, issuer: new X509Certificate(issuer), renewAfter }
  }

  /** One day in the life of every device: it connects, and renews when it is time. */
  async live(day: number): Promise<void> {
    await this.#hear()
    const server = parse(
      splitPem(readFileSync(join(this.#service.config.layout.enrollment, 'server.crt'), 'utf8')),
    )
    for (const device of this.devices) {
      if (!(await this.#meets(device, server))) this.lost.push(`${device.id} on day ${day}`)
      else if (this.#deps.now() >= device.renewAfter) await this.#renew(device, day)
      else if (
        day >= device.fetchesFrom &&
        device.bundle < this.#deps.authority.bundle.version &&
        (day % 20 === 0 || day > LATE_DAY)
      )
        await this.#fetch(device)
    }
  }

  async #renew(device: SimulatedDevice, day: number): Promise<void> {
    const fingerprint = fingerprintOf(device.certificate)
    const presented = await this.#deps.registry.findCredential({ fingerprint })
    if (!presented) throw new Error(`${device.id} is not recorded`)
    const csr = await request(device.id, generateKey())
    const issued = await renew(this.#deps, { presented, csr, names: 'optional', channel: NO_CHANNEL })
    Object.assign(device, this.#held(issued))
    await this.#hear()
    await this.#seen(device)
    if (day >= device.fetchesFrom) await this.#fetch(device)
  }

  async #fetch(device: SimulatedDevice): Promise<void> {
    const { roots, version } = caReply(this.#deps)
    await noteAdoption(this.#deps, device.id)
    Object.assign(device, { roots, bundle: version })
  }

  /** Both sides of a handshake, at the time of the simulation. */
  async #meets(device: SimulatedDevice, [leaf, ...others]: readonly X509Certificate[]): Promise<boolean> {
    const now = this.#deps.now()
    if (!leaf || !leadsTo(parse(device.roots), { leaf, others, now })) return false
    const trusted = [...this.broker.trusted.values()]
    const isTrusted = trusted.some((ca) => isSignedBy(device.certificate, ca))
    const anchors = [...parse(splitPem(this.broker.root)), ...trusted.filter((ca) => isSignedBy(ca, ca))]
    const path = { leaf: device.certificate, others: [...trusted, device.issuer], now }
    if (!isTrusted || !leadsTo(anchors, path)) return false
    const credential = await this.#deps.registry.findCredential({
      fingerprint: fingerprintOf(device.certificate),
    })
    return credential !== null && ['issued', 'active'].includes(credential.certificate.state)
  }

  /** What the feed has told the brokers since. */
  async #hear(): Promise<void> {
    const { registry } = this.#deps
    for (;;) {
      const changes = await registry.changesAfter(this.broker.position, 1000)
      for (const { position, change } of changes) {
        this.broker.position = position
        if (change.kind !== 'issuer') continue
        const { id, pem, trusted } = change.issuer
        if (trusted) this.broker.trusted.set(id, new X509Certificate(pem))
        else this.broker.trusted.delete(id)
      }
      if (changes.length < 1000) return
    }
  }

  async #seen(device: SimulatedDevice): Promise<void> {
    const { registry, now } = this.#deps
    const fingerprint = fingerprintOf(device.certificate)
    const connected: Report = {
      ...{
        type: 'connected',
        at: now(),
        fingerprint,
        device: device.id,
        address: '192.0.2.1',
        resumed: false,
      },
      connection: `c${++this.#sequence}`,
    }
    const batch = {
      boot: 'boot',
      sequence: this.#sequence,
      at: now(),
      applied: null,
      sessions: 0,
      url: 'mqtts://b1',
    }
    await registry.applyReports('b1', { ...batch, reports: [connected] }, DAY_MS, now())
  }
}

async function request(id: string, key: KeyObject): Promise<Buffer> {
  return (await createCsr({ key, commonName: id })).der
}

function fingerprintOf({ fingerprint256 }: X509Certificate): string {
  return fingerprint256.replaceAll(':', '').toLowerCase()
}

/** The operator, who does what the alarms ask for, as late as is wise. */
class Operator {
  readonly done: string[] = []
  readonly alarms: string[] = []
  readonly #deps: Deps

  constructor(deps: Deps) {
    this.#deps = deps
  }

  async look(day: number): Promise<void> {
    const deps = this.#deps
    const alarms = caAlarms(deps.authority.cas, deps.now())
    for (const { name, id, withinDays } of alarms) {
      const alarm = `${name} ${id} ${withinDays}`
      if (!this.alarms.includes(alarm)) this.alarms.push(alarm)
    }
    const { rollover } = await rolloverStatus(deps)
    const isOpen = rollover !== null && rollover.endedAt === null
    if (!isOpen && alarms.some(({ withinDays }) => withinDays <= 30)) {
      const root = alarms.some(({ name }) => name === 'root CA')
      await startRollover(deps, { root, lifetimeMs: (root ? 3650 : ISSUING_DAYS) * DAY_MS, by })
      this.done.push(`${day} start ${root ? 'root' : 'issuing'}`)
    } else if (rollover?.state === 'published' && alarms.some(({ withinDays }) => withinDays <= 7)) {
      await cutOver(deps, { threshold: 0.8, by })
      this.done.push(`${day} cut-over`)
    } else if (rollover?.state === 'cut-over' && (await this.#finish())) this.done.push(`${day} finish`)
  }

  async #finish(): Promise<boolean> {
    try {
      await finishRollover(this.#deps, { by })
      return true
    } catch (error) {
      if (isMusterError(error, 'conflict')) return false
      throw error
    }
  }
}

t.test('three rollovers in two years lose no device', { timeout: 300_000 }, async (t) => {
  const clock = { offsetMs: 0 }
  const service = await startShort(t, clock)
  const { deps } = service
  const fleet = new Fleet(service)
  await fleet.begin()
  const operator = new Operator(deps)
  const bases = deps.authority.current
  for (let day = 1; day <= DAYS; day++) {
    clock.offsetMs = day * DAY_MS
    if (day % 10 === 0) await service.renewOwn()
    await operator.look(day)
    await fleet.live(day)
    if (day % 90 === 0) await agrees(t, { service, fleet, day })
  }
  t.same(fleet.lost, [], 'no device was turned away, or turned away, on any day')
  t.match(
    operator.done.map((line) => line.replace(/^\d+ /, '')),
    [
      'start issuing',
      'cut-over',
      'finish',
      'start issuing',
      'cut-over',
      'finish',
      'start root',
      'cut-over',
      'finish',
    ],
    operator.done.join(', '),
  )
  const daysOf = (id: string) =>
    operator.alarms.filter((line) => line.includes(id)).map((line) => line.split(' ').at(-1))
  t.same(daysOf(bases.device), ['90', '30', '7'], 'alarms of the first device CA')
  t.same(daysOf(bases.infrastructure), ['90', '30', '7'])
  t.same(daysOf(bases.root), ['90', '30', '7'])
  const ends = new Map(deps.authority.cas.map(({ id, notAfter }) => [id, notAfter]))
  const kept = await deps.registry.listDevices({ limit: 100, now: deps.now() })
  t.equal(kept.devices.length, DEVICES)
  for (const { id } of kept.devices) {
    const { certificates } = await deps.registry.showDevice(id, deps.now())
    t.ok(
      certificates.every(({ notAfter, issuer }) => notAfter <= (ends.get(issuer) ?? 0)),
      `${id}: no leaf outlives its CA`,
    )
  }
  t.equal(await deps.registry.verifyAudit(), null)
  t.equal(deps.authority.bundle.roots.length, 1)
  t.not(deps.authority.current.root, bases.root)
})

/** OpenSSL sees what the devices see. */
async function agrees(
  t: Parameters<typeof startEnrollment>[0],
  of: { service: RunningEnrollment; fleet: Fleet; day: number },
): Promise<void> {
  const { service, fleet, day } = of
  const directory = join(service.data, `day-${day}`)
  mkdirSync(directory)
  const seconds = String(Math.floor(service.deps.now() / 1000))
  for (const device of [fleet.devices[0], fleet.devices.at(-1)]) {
    if (!device) throw new Error('the fleet is empty')
    const roots = join(directory, `${device.id}-roots.pem`)
    writeFileSync(roots, device.roots.join(''))
    const server = join(service.config.layout.enrollment, 'server.crt')
    const verify = ['verify', '-attime', seconds, '-CAfile', roots, '-untrusted', server, server]
    t.match(
      execFileSync('openssl', verify, { encoding: 'utf8' }),
      /OK/,
      `${device.id} believes the server on day ${day}`,
    )
  }
}
