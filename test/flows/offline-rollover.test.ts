import { X509Certificate } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { RolloverView } from '#shared/api'
import { readCertificate } from '#shared/pki/certificate'
import { readPrivateKey, sha256Hex, spkiDer } from '#shared/pki/keys'
import { derToPem, splitPem } from '#shared/pki/pem'
import { issueCaCertificate } from '../../enrollment/ca/ca-certificate.ts'
import { keySigner } from '../../enrollment/ca/signer.ts'
import { keyIdentifier } from '../../enrollment/ca/template.ts'
import type { Step } from '../../enrollment/deps.ts'
import { openMaintenance } from '../../enrollment/maintenance.ts'
import { run as runCli } from '../../operator/cli.ts'
import type { Terminal } from '../../operator/terminal.ts'
import { enrollDevice, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { MUSTER } from '../support/plane.ts'

const names = { trustDomain: 'plant.example', httpBase: 'http://pki.plant.example:8080' }
const nameOptions = ['--trust-domain', names.trustDomain, '--http-base', names.httpBase]

/** A plane and, as if on another machine, the directory of its root; commands go to either. */
class Site {
  readonly base: string
  readonly vault: string
  service!: RunningEnrollment // set by `open`, the only way to make one
  readonly #test: Test

  private constructor(test: Test, base: string) {
    this.#test = test
    this.base = base
    this.vault = join(base, 'vault')
  }

  static async open(t: Test): Promise<Site> {
    const site = new Site(t, t.testdir({ out: {} }))
    const maintenance = openMaintenance()
    const data = join(site.base, 'plane')
    const requests = await maintenance.initOffline({ data, ...names })
    const chains = await site.sign(requests)
    await maintenance.install({ data, certificates: chains })
    await site.start()
    return site
  }

  async start(reached?: (step: Step) => void): Promise<void> {
    this.service = await startEnrollment(this.#test, { data: this.base, ...(reached ? { reached } : {}) })
  }

  /** The document that `muster <words> --json` prints. */
  async muster<T>(...words: string[]): Promise<T & { status: number }> {
    const [stdout, stderr]: [string[], string[]] = [[], []]
    const terminal: Terminal = {
      out: (text) => void stdout.push(text),
      err: (text) => void stderr.push(text),
      canAsk: false,
      isScreen: false,
      ask: async () => '',
      paint: (_, text) => text,
    }
    const other = async () => {}
    const maintenance = async () => openMaintenance()
    const programs = {
      enrollment: other,
      broker: other,
      sim: other,
      bench: other,
      bin: MUSTER,
      terminal,
      maintenance,
    }
    const status = await runCli([...words, '--data', join(this.base, 'plane'), '--json'], programs)
    return { ...JSON.parse(stdout.join('\n') || '{}'), status }
  }

  async request(): Promise<string[]> {
    return (
      await this.muster<{ requests: string[] }>('ca', 'rollover', 'request', '--out', join(this.base, 'out'))
    ).requests
  }

  async sign(requests: readonly string[], vault = this.vault): Promise<string[]> {
    const chains: string[] = []
    for (const csr of requests) {
      const { chain } = await this.muster<{ chain: string }>(
        'ca',
        'sign-issuer',
        '--root-dir',
        vault,
        ...nameOptions,
        csr,
      )
      chains.push(chain)
    }
    return chains
  }

  install(chains: readonly string[]): Promise<RolloverView & { status: number }> {
    return this.muster('ca', 'install', ...chains)
  }
}

t.test('issuing CAs follow under a root that is kept elsewhere', async (t) => {
  const site = await Site.open(t)
  const { service } = site
  const lamp = await enrollDevice(service, { id: 'lamp' })
  await t.rejects(service.admin.startRollover(), { code: 'conflict', message: /muster ca rollover request/ })
  t.match(await site.install(['absent.pem']), { status: 2 })
  const requests = await site.request()
  t.strictSame(
    requests.map((path) => path.slice(site.base.length)),
    ['/out/device-ca.csr', '/out/infrastructure-ca.csr'],
  )
  const texts = requests.map((path) => readFileSync(path, 'utf8'))
  await site.request()
  t.strictSame(
    requests.map((path) => spkiOf(readFileSync(path, 'utf8'))),
    texts.map(spkiOf),
    'asked again, the same keys: what is signed later still finds its key',
  )
  const rollover = await site.install(await site.sign(requests))
  t.match(rollover, { status: 0, kind: 'issuing', state: 'published' })
  t.equal(rollover.from.root, rollover.to.root)
  t.equal((await site.install(await site.sign(requests))).status, 5, 'one at a time')
  t.match(await service.admin.cutOverRollover({ threshold: 0 }), { state: 'cut-over' })
  t.match(service.deps.authority.current, rollover.to)
  const fan = await enrollDevice(service, { id: 'fan' })
  const issuer = service.deps.authority.cas.find(({ id }) => id === rollover.to.device)
  t.ok(new X509Certificate(fan.certificate).checkIssued(new X509Certificate(issuer?.pem ?? '')))
  t.notOk(new X509Certificate(lamp.certificate).checkIssued(new X509Certificate(issuer?.pem ?? '')))
  await site.request()
  t.notMatch(
    requests.map((path) => spkiOf(readFileSync(path, 'utf8'))),
    texts.map(spkiOf),
    'then new keys',
  )
  const keys = readdirSync(join(site.base, 'plane', 'ca', 'generations')).filter((name) =>
    name.endsWith('.key'),
  )
  t.equal(keys.length, 4, 'two that sign, two that wait')
  t.notOk(existsSync(join(site.base, 'plane', 'ca', 'root.key')))
  await service.stop()
  await site.start()
  t.match(site.service.deps.authority.current, rollover.to, 'the plane starts again with them')
})

function spkiOf(csr: string): string {
  const der = Buffer.from(csr.replace(/-----[^-]+-----/g, ''), 'base64').toString('hex')
  return der.slice(der.indexOf('06082a8648ce3d030107'), der.indexOf('06082a8648ce3d030107') + 160)
}

t.test('a new root that is kept elsewhere follows the old one', async (t) => {
  const site = await Site.open(t)
  const next = join(site.base, 'next-vault')
  const made = await site.muster<{ root: string }>(
    ...['ca', 'next-root', '--root-dir', site.vault, '--new-root-dir', next],
    ...nameOptions,
  )
  t.equal(made.status, 0)
  t.equal(
    (
      await site.muster<{ root: string }>(
        'ca',
        'next-root',
        '--root-dir',
        site.vault,
        '--new-root-dir',
        next,
        ...nameOptions,
      )
    ).root,
    made.root,
    'once',
  )
  const requests = await site.request()
  const chains = await site.sign(requests, next)
  const unlinked = chains.map((chain, index) => {
    const path = join(site.base, `unlinked-${index}.pem`)
    writeFileSync(path, splitPem(readFileSync(chain, 'utf8')).slice(0, 2).join(''))
    return path
  })
  const refused = await site.install(unlinked)
  t.equal(refused.status, 2)
  t.match(JSON.stringify(refused), /next-root/)
  const rollover = await site.install(chains)
  t.match(rollover, { status: 0, kind: 'root', state: 'published', to: { root: made.root } })
  const { bundle } = site.service.deps.authority
  t.equal(bundle.roots.length, 2)
  t.equal(bundle.links.length, 2)
  await site.service.admin.cutOverRollover({ threshold: 0 })
  t.equal(site.service.deps.authority.rootId, made.root)
  await enrollDevice(site.service, { id: 'fan' })
  await t.rejects(
    site.service.admin.abortRollover().then(() => site.service.admin.startRollover()),
    { code: 'conflict' },
  )
})

t.test('certificates that do not fit begin no rollover', async (t) => {
  const site = await Site.open(t)
  const { admin, deps } = site.service
  const before = deps.authority.current
  const own = readFileSync(join(site.base, 'plane', 'ca', 'device-ca.crt'), 'utf8')
  await t.rejects(admin.startRollover({ certificates: [own] }), {
    code: 'not_found',
    message: /rollover request/,
  })
  const requests = await site.request()
  const chains = (await site.sign(requests)).map((path) => readFileSync(path, 'utf8'))
  const [device = '', infrastructure = ''] = chains
  const otherVault = join(site.base, 'other-vault')
  const foreign = (await site.sign(requests, otherVault)).map((path) => readFileSync(path, 'utf8'))
  const misnamed: string[] = []
  for (const csr of requests) {
    const { chain } = await site.muster<{ chain: string }>(
      ...['ca', 'sign-issuer', '--root-dir', site.vault, '--trust-domain', 'other.example'],
      ...['--http-base', names.httpBase, csr],
    )
    misnamed.push(readFileSync(chain, 'utf8'))
  }
  const swapped = [await ofOtherKind(site, device), infrastructure]
  const attempts: [string, string[], RegExp][] = [
    ['one of two', [device], /infrastructure CA/],
    ['of another root', foreign, /next-root|has not signed/],
    ['for another trust domain', misnamed, /san_uri/],
    ['no certificates', ['-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n'], /cannot be read/],
    ['no PEM', ['x'], /there is none/],
    ['the CA that signs now', [own, infrastructure], /there is none/],
    ['with the purposes of the other CA', swapped, /is not what/],
  ]
  for (const [why, certificates, message] of attempts) {
    await t.rejects(admin.startRollover({ certificates }), { code: 'invalid_request', message }, why)
  }
  t.match(await admin.rolloverStatus(), { rollover: null })
  t.strictSame(deps.authority.current, before)
  t.match(
    await admin.startRollover({ certificates: [device + infrastructure] }),
    { state: 'published' },
    'those that do',
  )
})

/** What the root would sign if it took the key of the device CA for that of the infrastructure CA. */
async function ofOtherKind(site: Site, chain: string): Promise<string> {
  const path = join(site.vault, 'root.crt')
  const root = readCertificate(new X509Certificate(readFileSync(path)).raw)
  const passphrase = readFileSync(join(site.vault, 'passphrase'), 'utf8').trim()
  const key = readPrivateKey(readFileSync(join(site.vault, 'root.key'), 'utf8'), passphrase)
  const { raw: spki } = readCertificate(new X509Certificate(chain).raw).tbs.spki
  const der = await issueCaCertificate(
    { kind: 'infrastructure', trustDomain: names.trustDomain, now: Date.now(), spki },
    {
      name: root.tbs.subject.raw,
      keyId: keyIdentifier(root.tbs.spki.raw),
      notAfter: root.tbs.notAfter,
      signer: keySigner(key),
      caUrl: `${names.httpBase}/ca/${sha256Hex(new X509Certificate(readFileSync(path)).raw)}.crt`,
    },
  )
  return derToPem(der, 'CERTIFICATE')
}

t.test('a power cut leaves the rollover begun or not, and the same command completes', async (t) => {
  const site = await Site.open(t)
  const requests = await site.request()
  const chains = await site.sign(requests)
  for (const step of ['rollover-start.1', 'rollover-start.2'] as const) {
    await site.service.stop()
    await site.start((reached) => {
      if (reached === step) throw new Error('cut')
    })
    t.notMatch(await site.install(chains), { status: 0 })
    await site.service.stop()
    await site.start()
    const { rollover } = await site.service.admin.rolloverStatus()
    t.equal(rollover?.state ?? 'none', step === 'rollover-start.1' ? 'none' : 'published')
  }
  const again = await site.install(chains)
  t.match(again, { status: 0, state: 'published' })
  const ids = chains.map((path) => sha256Hex(new X509Certificate(readFileSync(path)).raw))
  t.strictSame([again.to.device, again.to.infrastructure], ids)
  t.ok(
    site.service.deps.caKeys.has(
      sha256Hex(spkiDer(new X509Certificate(readFileSync(chains[0] ?? '')).publicKey)),
    ),
  )
})
