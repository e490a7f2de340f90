import { type ChildProcess, spawn } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { type AdminClient, openAdminClient, readOperatorProfile } from '#shared/admin-client'
import type { CertificateReply, RolloverView } from '#shared/api'
import { layout, ports } from '#shared/layout'
import { newRequest } from '../support/enrollment.ts'
import { openTestClient } from '../support/https.ts'

const MUSTER = join(import.meta.dirname, '..', '..', 'bin', 'muster.mjs')

interface Service {
  readonly admin: AdminClient
  readonly ended: Promise<NodeJS.Signals | null>
  enroll(id: string): Promise<CertificateReply>
  stop(): Promise<void>
}

async function start(at: { data: string; portBase: number; crashAt?: string | undefined }): Promise<Service> {
  const args = ['--data', at.data, '--port-base', String(at.portBase), '--log-level', 'error']
  const env = { ...process.env, ...(at.crashAt ? { MUSTER_CRASH_AT: at.crashAt } : {}) }
  const child = spawn(process.execPath, [MUSTER, 'enrollment', ...args], {
    env,
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
  const ended = new Promise<NodeJS.Signals | null>((resolve) =>
    child.once('exit', (_, signal) => resolve(signal)),
  )
  await readyOf(child)
  const admin = openAdminClient(readOperatorProfile(layout(at.data).operatorProfile))
  return {
    admin,
    ended,
    async enroll(id) {
      const { token } = await admin.createToken({ batch: 'lab', uses: 1 })
      const ca = readFileSync(layout(at.data).rootCertificate, 'utf8') // the first root, whatever came since
      const client = openTestClient({ url: `https://localhost:${ports(at.portBase).enrollment}`, ca })
      const json = { token, csr: (await newRequest(id)).csr }
      const reply = await client.send('POST', '/v1/enroll', { json }).finally(() => client.close())
      if (reply.status !== 200) throw new Error(`enrollment answered ${reply.status}: ${reply.text}`)
      return JSON.parse(reply.text)
    },
    async stop() {
      await admin.close()
      child.kill('SIGTERM')
      await ended
    },
  }
}

function readyOf(child: ChildProcess): Promise<void> {
  return new Promise((resolve, reject) => {
    child.once('message', () => resolve())
    child.once('exit', (code) => reject(new Error(`the service ended with ${code} before it was ready`)))
  })
}

/** A step, how it is taken, and the state after it. */
interface Step {
  readonly name: string
  readonly state: RolloverView['state']
  take(admin: AdminClient): Promise<RolloverView>
}

const startRoot: Step = {
  name: 'rollover-start',
  state: 'published',
  take: (admin) => admin.startRollover({ root: true }),
}
const cutOver: Step = {
  name: 'rollover-cut-over',
  state: 'cut-over',
  take: (admin) => admin.cutOverRollover({ threshold: 0 }),
}
const abort: Step = { name: 'rollover-abort', state: 'aborting', take: (admin) => admin.abortRollover() }

t.test('a power cut before or after the commit of any step leaves one state or the other', async (t) => {
  const data = join(t.testdir(), 'plane')
  const portBase = 12_000 + Math.floor(Math.random() * 9_000)
  let service = await start({ data, portBase, crashAt: 'rollover-start.1' })
  const first = await service.enroll('lamp-0')
  let state = 'none'
  let count = 0
  for (const { name, state: after, take } of [startRoot, cutOver, abort]) {
    for (const part of [1, 2] as const) {
      await t.test(`${name}, ${part === 1 ? 'before' : 'after'} its commit`, async (t) => {
        await t.rejects(take(service.admin))
        t.equal(await service.ended, 'SIGKILL')
        await service.admin.close()
        const next = part === 1 ? `${name}.2` : nextOf(name)
        service = await start({ data, portBase, crashAt: next })
        const { rollover, bundleVersion } = await service.admin.rolloverStatus()
        t.equal(rollover?.state ?? 'none', part === 1 ? state : after)
        t.equal(bundleVersion, rollover ? 2 : 1)
        const issued = await service.enroll(`lamp-${++count}`)
        const [issuer = '', root = ''] = issued.chain.map((pem) => new X509Certificate(pem))
        t.ok(
          new X509Certificate(issued.certificate).verify((issuer as X509Certificate).publicKey),
          'it still issues',
        ) // of two
        const signs = rollover?.state === 'cut-over'
        t.equal(
          first.chain[1] === (root as X509Certificate).toString(),
          !signs,
          'with the CA that signs in this state',
        ) // of two
        t.match(await service.admin.verifyAudit(), { ok: true, firstBad: null })
        if (part === 2) t.equal((await take(service.admin)).state, after, 'the same command completes')
      })
    }
    state = after
  }
  const actions = (await service.admin.listAudit({ limit: 1000 })).map(({ action }) => action)
  t.same(
    actions.filter((action) => action.startsWith('rollover')),
    ['rollover.start', 'rollover.cut-over', 'rollover.abort'],
    'each step is in the audit log once',
  )
  await service.stop()
})

function nextOf(name: string): string | undefined {
  return { 'rollover-start': 'rollover-cut-over.1', 'rollover-cut-over': 'rollover-abort.1' }[name]
}
