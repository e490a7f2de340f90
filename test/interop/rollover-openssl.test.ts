/** What openssl reads from OCSP and CRLs of an issuing CA that is being replaced, until the last of it has expired. */
import { execFile } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { promisify } from 'node:util'
import t from 'tap'
import { readCertificate } from '#shared/pki/certificate'
import { OID } from '#shared/pki/oid'
import { pemToDer } from '#shared/pki/pem'
import { readDistributionPoint } from '#shared/pki/read-extensions'
import { finishRollover } from '../../enrollment/rollover.ts'
import { enrollDevice, type RunningEnrollment, startEnrollment } from '../support/enrollment.ts'
import { underClock } from '../support/fake-clock.ts'

const run = promisify(execFile)
const DAY_MS = 86_400_000
const POLL_MS = 20

/** An issuer as openssl is to know it, and the day on which it is asked. */
interface Asked {
  readonly service: RunningEnrollment
  readonly directory: string
  readonly issuer: string
  readonly roots: string
  readonly day: number
}

/** stdout and stderr, whatever the exit code, on that day. */
async function openssl({ day }: Asked, ...args: string[]): Promise<string> {
  const env = underClock(`+${day}d`)
  const { stdout, stderr } = await run('openssl', args, { env }).catch((failed) => failed)
  return `${stdout}${stderr}`
}

function lay({ directory, issuer, roots }: Asked, certificate: string) {
  const path = (name: string) => join(directory, name)
  writeFileSync(path('issuer.pem'), issuer)
  writeFileSync(path('trust.pem'), issuer + roots)
  writeFileSync(path('asked.pem'), certificate)
  return path
}

/** The state, and whether the answer was signed below this issuer and is of that day. */
async function ocsp(asked: Asked, certificate: string): Promise<string> {
  const path = lay(asked, certificate)
  const { http } = asked.service.whereabouts
  const files = ['-issuer', path('issuer.pem'), '-cert', path('asked.pem'), '-CAfile', path('trust.pem')]
  const said = await openssl(asked, 'ocsp', ...files, '-url', `${http}/ocsp`, '-resp_text')
  if (!/Response verify OK/.test(said) || /times invalid|Error querying/i.test(said)) return said
  const reason = /Reason: (\w+)/.exec(said)?.[1]
  return `${/asked\.pem: (\w+)/.exec(said)?.[1]}${reason === undefined ? '' : ` ${reason}`}`
}

/** What `openssl verify -crl_check` says with the list that the certificate names, which has to be signed and fresh. */
async function crl(asked: Asked, certificate: string): Promise<string> {
  const path = lay(asked, certificate)
  const { extensions } = readCertificate(pemToDer(certificate, 'CERTIFICATE')).tbs
  const point = extensions.get(OID.crlDistributionPoints)
  if (point === undefined) return 'it names no CRL'
  const url = new URL(readDistributionPoint(point))
  const reply = await fetch(new URL(url.pathname, asked.service.whereabouts.http))
  writeFileSync(path('list.der'), await reply.bytes())
  await openssl(asked, 'crl', '-inform', 'DER', '-in', path('list.der'), '-out', path('list.pem'))
  const signed = await openssl(asked, 'crl', '-in', path('list.pem'), '-noout', '-CAfile', path('trust.pem'))
  if (!/verify OK/.test(signed)) return signed
  const files = ['-CAfile', path('trust.pem'), '-CRLfile', path('list.pem'), path('asked.pem')]
  const said = await openssl(asked, 'verify', '-crl_check', ...files)
  if (/certificate revoked/.test(said)) return 'revoked'
  return /: OK/.test(said) ? 'good' : said
}

async function stop(service: RunningEnrollment, id: string, action: 'hold' | 'revoke'): Promise<void> {
  const scope = { kind: 'device', id } as const
  const undo = action === 'revoke' ? { undoMs: 0 } : {}
  const plan = await service.admin.proposePlan({ action, scope, reason: 'keyCompromise', ...undo })
  await service.admin.applyPlan(plan.id, 1)
}

/** Until every list of the CA that was replaced says so. */
async function revoked({ deps }: RunningEnrollment, of: { issuer: string; serial: string }): Promise<void> {
  const deadline = Date.now() + 30_000
  while ((await deps.registry.revocationStatus(of.issuer, of.serial))?.state !== 'revoked') {
    if (Date.now() > deadline) throw new Error('not revoked in 30 s')
    await setTimeout(POLL_MS)
  }
  await deps.revocationLists.refresh(deps.now())
}

t.test('a CA that is replaced answers for what it has signed until that has expired', async (t) => {
  const clock = { offsetMs: 0 }
  const directory = t.testdir({ data: {} })
  const service = await startEnrollment(t, { clock, data: join(directory, 'data') })
  const { admin, deps } = service
  const before = deps.authority
  const old = { service, directory, issuer: before.device.pem, roots: before.rootPem, day: 0 }
  const oldId = before.device.id
  const [good, held, bad] = [
    await enrollDevice(service, { id: 'good' }),
    await enrollDevice(service, { id: 'held' }),
    await enrollDevice(service, { id: 'bad' }),
  ]
  await admin.startRollover({ root: true })
  t.equal(await ocsp(old, good.certificate), 'good', 'published')
  t.equal(await crl(old, good.certificate), 'good')
  await admin.cutOverRollover({ threshold: 0 })
  const young = await enrollDevice(service, { id: 'young' })
  const next = { ...old, issuer: deps.authority.device.pem, roots: deps.authority.bundle.roots.join('') }
  t.not(deps.authority.device.id, oldId)
  await stop(service, 'held', 'hold')
  await stop(service, 'bad', 'revoke')
  await revoked(service, { issuer: oldId, serial: bad.serial })

  /** Each certificate asked of its own issuer, and of no other. */
  const everything = async (day: number, why: string) => {
    const [a, b] = [
      { ...old, day },
      { ...next, day },
    ]
    t.equal(await ocsp(a, good.certificate), 'good', why)
    t.equal(await ocsp(a, held.certificate), 'revoked certificateHold')
    t.equal(await ocsp(a, bad.certificate), 'revoked keyCompromise')
    t.equal(await crl(a, good.certificate), 'good')
    t.equal(await crl(a, bad.certificate), 'revoked')
    t.equal(await ocsp(b, young.certificate), 'good')
    t.equal(await crl(b, young.certificate), 'good')
    t.notMatch(await ocsp(b, good.certificate), /^good$/, 'the new CA does not answer for the old one')
  }
  await everything(0, 'after the cut-over')
  for (const day of [10, 20, 29]) {
    clock.offsetMs = day * DAY_MS
    await service.renewOwn()
    await deps.revocationLists.refresh(deps.now())
    await everything(day, `on day ${day}`)
  }
  const day = 31
  clock.offsetMs = day * DAY_MS
  await service.renewOwn()
  t.match(await finishRollover(deps, { by: 'operator:test' }), { state: 'finished' })
  const gone = { ...old, day }
  t.equal(
    await ocsp(gone, good.certificate),
    'good',
    'it has expired, and the answer is still signed below its CA',
  )
  t.equal(await ocsp(gone, bad.certificate), 'revoked keyCompromise')
  t.match(await crl(gone, good.certificate), /has expired/, 'the list is fresh, the certificate is not')
})
