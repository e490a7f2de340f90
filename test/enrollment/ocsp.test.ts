import { createHash, randomBytes } from 'node:crypto'
import { mkdtempSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { isMusterError, MusterError } from '#shared/errors'
import { bitsOf, readDer } from '#shared/pki/der'
import { NULL, octetString, sequence } from '#shared/pki/der-write'
import { extension } from '#shared/pki/extensions'
import { generateKey, spkiDer } from '#shared/pki/keys'
import { OID } from '#shared/pki/oid'
import { issueResponderCertificate, type Responder } from '../../enrollment/ca/ocsp.ts'
import { keySigner } from '../../enrollment/ca/signer.ts'
import { readingsOf } from '../../enrollment/http/ocsp.ts'
import { OcspService } from '../../enrollment/ocsp.ts'
import { openRegistry } from '../../enrollment/registry/open.ts'
import type { RevocationStatus } from '../../enrollment/registry/registry.ts'
import {
  certId,
  criticalUnknown,
  der,
  nonceExtension,
  ocspRequest,
  readOcspResponse,
} from '../support/ocsp.ts'
import { testAuthority } from '../support/pki.ts'
import fc from '../support/properties.ts'
import { device as anyDevice, BEGIN, planeOf } from '../support/registry-plane.ts'

const HOUR_MS = 3_600_000
const START = Date.UTC(2026, 10, 1, 12, 0, 0, 123) // a millisecond that must not be seen
const authority = await testAuthority({ now: START - 24 * HOUR_MS })
t.teardown(authority.remove)
const { device, infrastructure } = authority
const issuer = device.pem

const MALFORMED = 1
const UNAUTHORIZED = 6

async function newResponder(notAfter = START + 7 * 24 * HOUR_MS): Promise<Responder> {
  const key = generateKey()
  const spki = spkiDer(key)
  const certificate = await issueResponderCertificate(device, {
    spki,
    serial: `4${randomBytes(16).toString('hex').slice(1)}`,
    notBefore: wholeSecond(START - HOUR_MS),
    notAfter: wholeSecond(notAfter),
  })
  return { certificate, notAfter: wholeSecond(notAfter), signer: keySigner(key) }
}

const wholeSecond = (at: number) => Math.floor(at / 1000) * 1000

/** A service over a table of statuses, with a clock, that counts its signatures. */
async function open(of: { responder?: Responder; mark?: () => string } = {}) {
  const statuses = new Map<string, RevocationStatus>()
  const clock = { now: START }
  let signatures = 0
  const made = of.responder ?? (await newResponder())
  const responder = {
    ...made,
    signer: {
      ...made.signer,
      sign: (tbs: Uint8Array) => {
        signatures += 1
        return made.signer.sign(tbs)
      },
    },
  }
  const service = new OcspService({
    registry: {
      stateMark: of.mark ?? (() => null),
      revocationStatus: async (of, serial) => (of === device.id ? (statuses.get(serial) ?? null) : null),
    },
    responders: [{ issuer: device, responder }],
    signingClock: {
      check(now) {
        if (now < START - HOUR_MS) throw new MusterError('clock_wrong', 'the clock is wrong')
      },
    },
    now: () => clock.now,
  })
  const ask = async (...readings: Buffer[]) => {
    const [only, ...others] = readings
    const kept = only && others.length === 0 ? service.kept(only) : null // as the listener asks first
    return readOcspResponse((kept ?? (await service.answer(readings))).der, issuer)
  }
  return { service, statuses, clock, ask, signatures: () => signatures }
}

const SERIAL = `4${'a5'.repeat(16).slice(1)}`
const good = { state: 'good' } as const

t.test('every status has its answer, whatever hash names the issuer', async (t) => {
  const { statuses, ask } = await open()
  const wanted: [RevocationStatus | null, string][] = [
    [good, 'good'],
    [{ state: 'held', since: START - 5_000 }, 'revoked 6'],
    [{ state: 'revoked', since: START - 5_000, reason: 'keyCompromise' }, 'revoked 1'],
    [{ state: 'revoked', since: START - 5_000, reason: 'unspecified' }, 'revoked 0'],
    [null, 'unknown'],
  ]
  for (const [status, says] of wanted) {
    if (status) statuses.set(SERIAL, status)
    else statuses.delete(SERIAL)
    for (const hash of ['sha1', 'sha256'] as const) {
      for (const nonce of [{}, { nonce: randomBytes(16) }]) {
        t.match(await ask(ocspRequest({ issuer, serials: [SERIAL], hash, ...nonce })), {
          status: 0,
          statuses: [says],
        })
      }
    }
  }
})

t.test('a response is signed by a delegate, named by its key, with dates without fractions', async (t) => {
  const responder = await newResponder()
  const { ask, statuses } = await open({ responder })
  statuses.set(SERIAL, good)
  const said = await ask(ocspRequest({ issuer, serials: [SERIAL] }))
  if (!('responder' in said)) return t.fail('no content')
  const bits = bitsOf(readDer(responder.signer.spki).children[1])
  t.same(said.keyHash, createHash('sha1').update(bits).digest())
  t.same(said.responder.keyUsage, [OID.ocspSigning])
  t.same(said.dates, ['20261101120000Z', '20261101120000Z', '20261101130000Z'])
  t.equal(said.responder.subjectAltName, undefined, 'no identity: no listener takes it')
})

t.test('no response outlives the certificate that signed it', async (t) => {
  const { ask, statuses } = await open({ responder: await newResponder(START + 600_000) })
  statuses.set(SERIAL, good)
  t.match(await ask(ocspRequest({ issuer, serials: [SERIAL] })), { dates: { 2: '20261101121000Z' } })
})

t.test('a nonce of 1 to 128 octets comes back, others are malformed', async (t) => {
  const { ask, statuses, service } = await open()
  statuses.set(SERIAL, good)
  for (const octets of [1, 16, 32, 128]) {
    const nonce = randomBytes(octets)
    const request = ocspRequest({ issuer, serials: [SERIAL], nonce })
    t.match(await ask(request), { nonce, statuses: ['good'] })
    t.equal((await service.answer([request])).freshness, null, 'nobody else may have it')
  }
  for (const octets of [0, 129, 1000]) {
    const nonce = randomBytes(octets)
    t.same(await ask(ocspRequest({ issuer, serials: [SERIAL], nonce })), { status: MALFORMED })
  }
  t.match(await ask(ocspRequest({ issuer, serials: [SERIAL] })), { nonce: null })
})

t.test('without a nonce one signature serves everybody, until half its life is over', async (t) => {
  const { service, statuses, clock, signatures } = await open()
  statuses.set(SERIAL, good)
  const request = ocspRequest({ issuer, serials: [SERIAL] })
  const first = await service.answer([request])
  t.match(first.freshness, {
    tag: createHash('sha256').update(first.der).digest('hex'),
    thisUpdate: wholeSecond(START),
    nextUpdate: wholeSecond(START) + HOUR_MS,
  })
  clock.now += HOUR_MS / 2 - 1
  t.equal(await service.answer([request]), first)
  t.equal(signatures(), 1)
  clock.now += 1
  t.not(await service.answer([request]), first)
  t.equal(signatures(), 2)
  clock.now = START - 60_000
  await service.answer([request])
  t.equal(signatures(), 3, 'a clock that was set back: an answer of the future is of no use')
  t.equal(service.presigned, 1)
})

t.test('a hold is looked at before what was signed earlier, and so is its end', async (t) => {
  const { statuses, ask } = await open()
  const request = ocspRequest({ issuer, serials: [SERIAL] })
  const steps: [RevocationStatus, string][] = [
    [good, 'good'],
    [{ state: 'held', since: START - 1_000 }, 'revoked 6'],
    [good, 'good'],
    [{ state: 'revoked', since: START - 1_000, reason: 'cessationOfOperation' }, 'revoked 5'],
  ]
  for (const [status, says] of steps) {
    statuses.set(SERIAL, status)
    t.match(await ask(request), { statuses: [says] })
  }
})

t.test('while nothing was written the registry is not asked again, and a hold counts at once', async (t) => {
  const written = { mark: 1 }
  const { statuses, ask, signatures } = await open({ mark: () => `${written.mark}` })
  const request = ocspRequest({ issuer, serials: [SERIAL] })
  statuses.set(SERIAL, good)
  for (let asked = 0; asked < 3; asked++) t.match(await ask(request), { statuses: ['good'] })
  statuses.set(SERIAL, { state: 'held', since: START - 5_000 })
  t.match(await ask(request), { statuses: ['good'] }, 'a registry that changes without a mark was not asked')
  written.mark += 1
  t.match(await ask(request), { statuses: ['revoked 6'] })
  statuses.set(SERIAL, good)
  written.mark += 1
  t.match(await ask(request), { statuses: ['good'] })
  t.equal(signatures(), 3)
})

/** What is committed between two questions, by the process that answers or by another one. */
const commit = fc.record({
  by: fc.constantFrom('own', 'other'),
  what: fc.constantFrom('hold', 'undo', 'revoke', 'nothing of interest'),
  device: fc.integer({ min: 0, max: 1 }),
})

t.test('whatever anybody commits is in the next answer, however often the last one was given', async (t) => {
  const [responder, root] = [await newResponder(), t.testdir({})]
  const walk = fc.asyncProperty(fc.array(commit, { minLength: 4, maxLength: 12 }), async (commits) => {
    const path = join(mkdtempSync(join(root, 'walk-')), 'registry.db')
    const options = { trustDomain: 'plane.test', epoch: 'epoch-1', now: BEGIN }
    const planes = {
      own: planeOf(await openRegistry(path, options), 'a'),
      other: planeOf(await openRegistry(path, options), 'b'),
    }
    const { own } = planes
    const devices = [await own.enroll('d0'), await own.enroll('d1')]
    const service = new OcspService({
      registry: own.registry,
      responders: [{ issuer: { ...device, id: own.issuer.id }, responder }],
      signingClock: { check: () => {} },
      now: () => START,
    })
    const answers = async () => {
      const said = []
      for (const { serial } of devices) {
        const request = ocspRequest({ issuer, serials: [serial] })
        const reply = service.kept(request) ?? (await service.answer([request]))
        said.push(readOcspResponse(reply.der, issuer))
      }
      return said
    }
    const expected = async () => {
      const statuses = devices.map(({ serial }) => own.registry.revocationStatus(own.issuer.id, serial))
      return (await Promise.all(statuses)).map((status) => ({ statuses: [status && SAYS[status.state]] }))
    }
    const holds: string[] = []
    for (const [index, { by, what, device: number }] of commits.entries()) {
      const plane = planes[by as keyof typeof planes] // one of the two that are drawn
      const target = anyDevice(`d${number}`)
      if (what === 'hold') holds.push((await plane.hold(`h${index}`, target)).id)
      else if (what === 'undo')
        await plane.registry.undoPlan(holds.pop() ?? 'none', plane.act()).catch(isRefused)
      else if (what === 'revoke') await plane.revoke(`r${index}`, target, { reason: 'superseded' })
      else await plane.registry.createFleet({ id: `f${index}` }, plane.act())
      if (by === 'other') await new Promise(setImmediate) // what a request of another client takes at the least
      for (let asked = 0; asked < 3; asked++) t.match(await answers(), await expected(), `${by} ${what}`)
    }
    await own.registry.close()
    await planes.other.registry.close()
  })
  await fc.assert(walk, { numRuns: 20 })
})

const SAYS = { good: 'good', held: 'revoked 6', revoked: 'revoked 4' } as const

function isRefused(error: unknown): void {
  if (!isMusterError(error)) throw error
}

t.test('what is unknown is not kept: it may be issued in the next moment', async (t) => {
  const { service, statuses, ask } = await open()
  const request = ocspRequest({ issuer, serials: [SERIAL] })
  t.equal((await service.answer([request])).freshness, null)
  t.equal(service.presigned, 0)
  statuses.set(SERIAL, good)
  t.match(await ask(request), { statuses: ['good'] })
})

t.test('several certificates in one request are answered together, up to 16', async (t) => {
  const { ask, statuses } = await open()
  statuses.set(SERIAL, good)
  const unknown = '7f'.repeat(16)
  t.match(await ask(ocspRequest({ issuer, serials: [SERIAL, unknown] })), { statuses: ['good', 'unknown'] })
  const many = (count: number) =>
    ocspRequest({ issuer, serials: Array.from({ length: count }, () => SERIAL) })
  t.match(await ask(many(16)), { status: 0 })
  t.same(await ask(many(17)), { status: MALFORMED })
})

t.test('for certificates of other issuers it has no authority', async (t) => {
  const { ask, signatures } = await open()
  t.same(await ask(ocspRequest({ issuer: infrastructure.pem, serials: [SERIAL] })), { status: UNAUTHORIZED })
  t.same(await ask(ocspRequest({ issuer, serials: [SERIAL], hash: 'sha384' })), { status: UNAUTHORIZED })
  t.equal(signatures(), 0, 'and nothing is signed')
})

t.test('serials of odd forms are unknown', async (t) => {
  const { ask } = await open()
  for (const serial of ['00', '01', '7f'.repeat(20), '7f'.repeat(100)]) {
    t.match(await ask(ocspRequest({ issuer, serials: [serial] })), { statuses: ['unknown'] }, serial)
  }
})

t.test('what is no request is malformed', async (t) => {
  const { ask, statuses, signatures } = await open()
  statuses.set(SERIAL, good)
  const whole = ocspRequest({ issuer, serials: [SERIAL] })
  const id = certId({ issuer }, SERIAL)
  const list = der.sequence(der.sequence(id))
  const withExtensions = (...extensions: Buffer[]) => ocspRequest({ issuer, serials: [SERIAL], extensions })
  const wrong: Record<string, Buffer> = {
    nothing: Buffer.alloc(0),
    'other bytes': randomBytes(100),
    'cut short': whole.subarray(0, -1),
    'with a tail': Buffer.concat([whole, Buffer.from([0])]),
    'an empty list': der.sequence(der.sequence(der.sequence())),
    'a version that is the default': der.sequence(
      der.sequence(der.explicit(0, Buffer.from([2, 1, 0])), list),
    ),
    'version 2': der.sequence(der.sequence(der.explicit(0, Buffer.from([2, 1, 1])), list)),
    'a critical extension that nobody knows': withExtensions(criticalUnknown),
    'the same of one certificate': der.sequence(
      der.sequence(der.sequence(der.sequence(id, der.explicit(0, sequence(criticalUnknown))))),
    ),
    'two nonces': withExtensions(nonceExtension(randomBytes(8)), nonceExtension(randomBytes(8))),
    'a nonce that is no octet string': withExtensions(extension(OID.ocspNonce, NULL)),
    'a nonce with a tail': withExtensions(
      extension(OID.ocspNonce, Buffer.concat([octetString(randomBytes(8)), Buffer.from([0])])),
    ),
    'a signature of no form': der.sequence(der.sequence(list), octetString(Buffer.alloc(4))),
  }
  for (const [name, request] of Object.entries(wrong)) t.same(await ask(request), { status: MALFORMED }, name)
  t.equal(signatures(), 0)
  t.match(
    await ask(withExtensions(extension('1.2.3.4', NULL))),
    { statuses: ['good'] },
    'unless it may be ignored',
  )
  const named = der.sequence(der.sequence(der.explicit(1, octetString(Buffer.alloc(2))), list))
  t.match(await ask(named), { statuses: ['good'] }, 'a requestor name is not looked at')
})

t.test('no octets make it fail inside', async (t) => {
  const { ask, statuses } = await open()
  statuses.set(SERIAL, good)
  const whole = ocspRequest({ issuer, serials: [SERIAL], nonce: Buffer.alloc(16) })
  const bent = fc.tuple(fc.nat(whole.length - 1), fc.integer({ min: 0, max: 255 })).map(([at, octet]) => {
    const copy = Buffer.from(whole)
    copy[at] = octet
    return copy
  })
  const octets = fc.uint8Array({ maxLength: 200 }).map((array) => Buffer.from(array))
  const check = fc.asyncProperty(fc.oneof(bent, octets), async (request) => {
    const { status } = await ask(request)
    return [0, MALFORMED, UNAUTHORIZED].includes(status)
  })
  await t.resolves(fc.assert(check, { numRuns: 500 }))
})

t.test('a wrong clock signs nothing', async (t) => {
  const { service, clock } = await open()
  clock.now = START - 2 * HOUR_MS
  await t.rejects(service.answer([ocspRequest({ issuer, serials: [SERIAL] })]), { code: 'clock_wrong' })
})

t.test('a new certificate signs from the moment that it is there', async (t) => {
  const { service, statuses, ask } = await open()
  statuses.set(SERIAL, good)
  const request = ocspRequest({ issuer, serials: [SERIAL] })
  await ask(request)
  const next = await newResponder(START + 14 * 24 * HOUR_MS)
  service.renew([{ issuer: device, responder: next }])
  t.equal(service.notAfter, next.notAfter)
  const said = await ask(request)
  t.same('responder' in said && said.responder.raw, next.certificate)
})

t.test('the request in a path survives what proxies do to it', async (t) => {
  const { service, statuses } = await open()
  const path = (text: string) => `/ocsp/${text}`
  let withSlashes = 0
  for (let index = 0; index < 400; index++) {
    // twenty bits of ones are at least two slashes
    const random = randomBytes(16).toString('hex')
    const serial = `4${random.slice(1, 8 + (index % 8))}fffff${random.slice(13 + (index % 8))}`
    statuses.set(serial, good)
    const request = ocspRequest({ issuer, serials: [serial], hash: index % 2 === 0 ? 'sha1' : 'sha256' })
    const text = request.toString('base64')
    const asked = [
      encodeURIComponent(text),
      text,
      `/${text}`,
      text.replace(/=+$/, ''),
      `${encodeURIComponent(text)}?x=1`,
    ]
    for (const form of asked) t.same(readingsOf(path(form)), [request], form)
    const collapsed = text.replaceAll(/\/{2,}/g, '/')
    const lost = text.length - collapsed.length
    if (lost > 3) continue // by chance, more are lost in the hashes than are looked for
    t.ok(lost > 0)
    withSlashes += 1
    const readings = readingsOf(path(collapsed))
    t.ok(readings.some((reading) => reading.equals(request)))
    t.match(readOcspResponse((await service.answer(readings)).der, issuer), { statuses: ['good'] })
  }
  t.ok(withSlashes > 300)
  for (const wrong of ['', '%', '%zz', '***', 'MEYw', 'A'.repeat(5_000), '%2e%2e%2f', 'MEYw/'.repeat(20)]) {
    const { status } = readOcspResponse((await service.answer(readingsOf(path(wrong)))).der, issuer)
    t.ok(status === MALFORMED, wrong.slice(0, 20))
  }
})
