import { createHash, generateKeyPairSync, sign, verify } from 'node:crypto'
import { chmodSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { spkiDer } from '#shared/pki/keys'
import { openKey } from '../../../enrollment/ca/key-access.ts'
import { CKM, FLAG, RV } from '../../../enrollment/ca/pkcs11/cryptoki.ts'
import { MAX_WAITING } from '../../../enrollment/ca/pkcs11/lane.ts'
import { loadModule } from '../../../enrollment/ca/pkcs11/module.ts'
import { schemeOf } from '../../../enrollment/ca/pkcs11/scheme.ts'
import { Tokens } from '../../../enrollment/ca/pkcs11/tokens.ts'
import { formatKeyUri, parseKeyUri } from '../../../enrollment/ca/pkcs11/uri.ts'
import { FakeModule } from '../../support/cryptoki.ts'
import fc from '../../support/properties.ts'

const MODULE = '?module-path=/lib/hsm.so'
const URI = `pkcs11:token=ca;object=device${MODULE}`
const TBS = Buffer.from('what is to be signed')

/** A token with one key, and a signer of it. */
function plug(options: { pin?: () => string; deadlineMs?: number } = {}) {
  const module = new FakeModule()
  const { key } = module.add('device')
  const clock = { now: 1_000_000 }
  const tokens = new Tokens({
    load: () => module,
    pin: options.pin ?? (() => '1234'),
    now: () => clock.now,
    ...(options.deadlineMs === undefined ? {} : { deadlineMs: options.deadlineMs }),
  })
  const signer = tokens.signer(URI, spkiDer(key))
  const isGood = (signature: Buffer) =>
    verify('sha256', TBS, key.export({ format: 'pem', type: 'pkcs8' }), signature)
  const logins = () => module.calls.filter((call) => call === 'C_Login').length
  return { module, tokens, signer, clock, isGood, logins }
}

t.test('a key in a token signs, and logs in once', async (t) => {
  const { signer, isGood, logins, module, tokens } = plug()
  await signer.prove()
  t.ok(isGood(await signer.sign(TBS)))
  t.ok(isGood(await signer.sign(TBS)))
  t.equal(logins(), 1)
  await tokens.close()
  t.equal(module.calls.at(-1), 'C_CloseSession')
  await t.rejects(signer.sign(TBS), { code: 'unavailable', message: /it is closed/ })
})

t.test('a session that is lost is replaced at once, and nobody notices', async (t) => {
  for (const rv of [
    RV.CKR_SESSION_HANDLE_INVALID,
    RV.CKR_SESSION_CLOSED,
    RV.CKR_USER_NOT_LOGGED_IN,
    RV.CKR_KEY_HANDLE_INVALID,
    RV.CKR_DEVICE_REMOVED,
    RV.CKR_CRYPTOKI_NOT_INITIALIZED,
  ]) {
    const { signer, isGood, module, logins } = plug()
    await signer.sign(TBS)
    module.failures.set('C_Sign', [rv])
    t.ok(isGood(await signer.sign(TBS)), `0x${rv.toString(16)}`)
    t.equal(logins(), 2)
  }
  const { signer, isGood, module } = plug()
  await signer.sign(TBS)
  module.loseSession()
  t.ok(isGood(await signer.sign(TBS)), 'as the module itself reports it')
})

t.test('while the token is away signing is refused for now, and goes on when it is back', async (t) => {
  const { signer, isGood, module, clock } = plug()
  await signer.sign(TBS)
  module.isPresent = false
  module.loseSession()
  await t.rejects(signer.sign(TBS), { code: 'unavailable', message: /the token "ca": it is away/ })
  const asked = module.calls.length
  await t.rejects(signer.sign(TBS), { code: 'unavailable' })
  t.equal(module.calls.length, asked, 'it is asked again once a second, not by each request')
  t.equal(module.calls.at(-1), 'C_Finalize', 'the module is made to look again')
  module.isPresent = true
  module.failures.set('C_GetTokenInfo', [RV.CKR_DEVICE_ERROR])
  clock.now += 1_000
  await t.rejects(signer.sign(TBS), { code: 'unavailable' }, 'it is there, and cannot be read yet')
  clock.now += 1_000
  t.ok(isGood(await signer.sign(TBS)))
})

t.test('a module that fails in another way is initialised anew', async (t) => {
  const { signer, isGood, module, clock } = plug()
  await signer.sign(TBS)
  module.failures.set('C_Sign', [RV.CKR_GENERAL_ERROR])
  await t.rejects(signer.sign(TBS), { code: 'unavailable', message: /C_Sign answered CKR_GENERAL_ERROR/ })
  module.failures.set('C_OpenSession', [RV.CKR_FUNCTION_FAILED])
  await t.rejects(signer.sign(TBS), { code: 'unavailable', message: /C_OpenSession/ })
  t.equal(module.calls.at(-1), 'C_Finalize')
  clock.now += 1_000
  t.ok(isGood(await signer.sign(TBS)))
})

t.test('a refused PIN is tried once and never again, because tokens lock themselves', async (t) => {
  const { signer, logins, clock, module } = plug({ pin: () => '9999' })
  await t.rejects(signer.prove(), {
    code: 'passphrase_wrong',
    message:
      'Cannot log in to the token "ca": C_Login answered CKR_PIN_INCORRECT; the PIN is not tried again before the next start',
  })
  clock.now += 60_000
  module.pin = '9999'
  await t.rejects(signer.prove(), { code: 'passphrase_wrong' })
  await t.rejects(
    signer.sign(TBS),
    { code: 'unavailable' },
    'who asks for a certificate hears that it is not his fault',
  )
  t.equal(logins(), 1)
})

t.test('a token that one wrong PIN would lock, or that is locked, is not tried at all', async (t) => {
  for (const flag of [FLAG.userPinFinalTry, FLAG.userPinLocked]) {
    const { signer, logins, module } = plug()
    module.flags = flag
    await t.rejects(signer.prove(), { code: 'passphrase_wrong', message: /lock/ })
    t.equal(logins(), 0)
  }
})

t.test('a PIN that changes while the plane runs is tried once', async (t) => {
  const { signer, module, logins } = plug()
  await signer.sign(TBS)
  module.pin = '5678'
  module.loseSession()
  for (let time = 0; time < 3; time++) await t.rejects(signer.sign(TBS), { code: 'unavailable' })
  t.equal(logins(), 2)
})

t.test('a slow token is asked one thing at a time, and too many who wait are turned away', async (t) => {
  const { signer, isGood, module } = plug()
  await signer.prove()
  const gate = Promise.withResolvers<void>()
  module.gate = gate.promise
  const waiting = Array.from({ length: MAX_WAITING }, () => signer.sign(TBS))
  await t.rejects(signer.sign(TBS), { code: 'unavailable', message: /too many requests wait/ })
  gate.resolve()
  t.ok((await Promise.all(waiting)).every(isGood))
  t.equal(module.mostConcurrent, 1)
  t.ok(isGood(await signer.sign(TBS)), 'and then there is room again')
})

t.test(
  'who waits too long for a token that hangs gets an answer, and what he asked for is not done',
  async (t) => {
    const { signer, module, tokens } = plug({ deadlineMs: 20 })
    const gate = Promise.withResolvers<void>()
    module.gate = gate.promise
    await t.rejects(Promise.all([signer.sign(TBS), signer.sign(TBS)]), {
      code: 'unavailable',
      message: /too slow/,
    })
    await t.rejects(signer.sign(TBS), { code: 'unavailable', message: /too slow/ })
    gate.resolve()
    await tokens.close()
    const signed = module.calls.filter((call) => call === 'C_Sign').length
    t.equal(signed, 1, 'only what the token had begun')
  },
)

t.test('a signature that is not of the certificate’s key never leaves', async (t) => {
  const spoilt = plug()
  await spoilt.signer.prove()
  spoilt.module.spoil = (signature) =>
    Buffer.from(signature.map((octet, index) => (index === 9 ? octet ^ 1 : octet)))
  await t.rejects(spoilt.signer.sign(TBS), { code: 'unavailable' })
  spoilt.module.spoil = () => Buffer.alloc(3)
  await t.rejects(spoilt.signer.sign(TBS), { code: 'unavailable' })

  const { tokens, module } = plug()
  const foreign = tokens.signer(URI, spkiDer(generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey))
  await t.rejects(foreign.prove(), {
    code: 'directory_unusable',
    message: /another one than in the certificate/,
  })
  const curve = tokens.signer(URI, spkiDer(generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey))
  await t.rejects(curve.prove(), { code: 'directory_unusable' }, 'of another type')
  module.keys.length = 0
  module.loseSession()
  await t.rejects(foreign.prove(), { code: 'not_found', message: /"device".*there is none/ })
})

t.test('a key that may not sign, and two of one name, are told at the start', async (t) => {
  const { signer, module } = plug()
  module.failures.set('C_Sign', [RV.CKR_MECHANISM_INVALID])
  await t.rejects(signer.prove(), { code: 'unavailable', message: /CKR_MECHANISM_INVALID/ })
  module.failures.set('C_Sign', [RV.CKR_KEY_FUNCTION_NOT_PERMITTED])
  await t.rejects(signer.prove(), { code: 'unavailable', message: /CKR_KEY_FUNCTION_NOT_PERMITTED/ })
  module.add('device')
  module.loseSession()
  await t.rejects(signer.prove(), { code: 'conflict', message: /more than one; name its id/ })
})

t.test('a key is taken when it is there, made when it is not, and the next one beside it', async (t) => {
  const { tokens, module } = plug()
  const taken = await tokens.take(URI)
  t.match(taken, { isNew: false, uri: /^pkcs11:token=ca;object=device;id=(%[0-9a-f]{2}){8};type=private\?/ })
  const made = await tokens.take(`pkcs11:token=ca;object=root${MODULE}`)
  t.match(made, { isNew: true, uri: /object=root;id=(%[0-9a-f]{2}){16}/ })
  const next = await tokens.takeNext(taken.uri)
  t.match(next, { isNew: true, uri: /object=device;id=/ })
  t.not(next.uri, taken.uri)
  await tokens.signer(taken.uri, taken.signer.spki).prove()
  t.equal(module.keys.length, 3)
  await t.rejects(tokens.take(`pkcs11:token=ca;id=%01${MODULE}`), { code: 'not_found', message: /no object/ })
})

t.test('a key file with a URI is a key file: its mode is checked, and the PIN file’s too', async (t) => {
  const { module, tokens } = plug({ pin: () => t.fail('the PIN of the environment') as never })
  const directory = t.testdir({ pin: '1234\n' })
  const [path, pin] = [join(directory, 'device-ca.key'), join(directory, 'pin')]
  writeFileSync(path, `${URI}&pin-source=file:${pin}\n`, { mode: 0o640 })
  const spki = spkiDer(module.keys[0]?.key ?? generateKeyPairSync('ed25519').publicKey)
  const open = () => openKey(path, { spki, access: { passphrase: 'x', tokens } })
  t.throws(open, { code: 'key_file_insecure', message: /chmod 600/ })
  chmodSync(path, 0o600)
  chmodSync(pin, 0o644)
  const signer = open() as ReturnType<Tokens['signer']> // a URI opens as nothing else
  await t.rejects(signer.prove(), { code: 'key_file_insecure', message: /pin": its mode is 0644/ })
  chmodSync(pin, 0o600)
  await t.resolves(signer.prove())
  rmSync(pin)
  module.loseSession()
  await t.rejects(signer.prove(), { code: 'passphrase_wrong', message: /no such file/ })
  t.throws(() => openKey(path, { spki, access: { passphrase: 'x' } }), { code: 'unsupported' })
})

t.test('what ECDSA tokens answer becomes what certificates carry, on both curves', async (t) => {
  for (const [namedCurve, hash] of [
    ['P-256', 'sha256'],
    ['P-384', 'sha384'],
  ] as const) {
    const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve })
    const scheme = schemeOf(spkiDer(publicKey))
    t.equal(scheme.mechanism, CKM.ecdsa)
    t.same(scheme.prepare(TBS), createHash(hash).update(TBS).digest())
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (tbs) => {
        const raw = sign(hash, tbs, { key: privateKey, dsaEncoding: 'ieee-p1363' })
        const der = scheme.finish(raw)
        return der !== null && scheme.isGood(tbs, der) && verify(hash, tbs, publicKey, der)
      }),
    )
    t.equal(scheme.finish(Buffer.alloc(63)), null)
    const halves = Buffer.concat([Buffer.alloc(raw(namedCurve), 0xff), Buffer.alloc(raw(namedCurve))])
    t.same(scheme.finish(halves)?.subarray(-3), Buffer.from([2, 1, 0]), 'minimal and unsigned')
  }
  for (const unfit of [
    generateKeyPairSync('ed25519'),
    generateKeyPairSync('ec', { namedCurve: 'P-521' }),
    generateKeyPairSync('rsa', { modulusLength: 1024 }),
  ]) {
    t.throws(() => schemeOf(spkiDer(unfit.publicKey)), { code: 'unsupported' })
  }
})

function raw(curve: 'P-256' | 'P-384'): number {
  return curve === 'P-256' ? 32 : 48
}

t.test('a URI that leaves something open, or has the PIN in it, is refused and never shown', async (t) => {
  const refused: [string, RegExp][] = [
    ['', /begin with pkcs11:/],
    ['file:/x', /begin with pkcs11:/],
    [`pkcs11:object=a${MODULE}`, /names no token/],
    [`pkcs11:token=ca${MODULE}`, /names no key/],
    ['pkcs11:token=ca;object=a', /module-path/],
    ['pkcs11:token=ca;object=a?module-path=hsm.so', /absolute/],
    [`${URI}&pin-value=geheim`, /pin-source=file:/],
    [`pkcs11:token=ca;object=a;pin-value=geheim${MODULE}`, /pin-source=file:/],
    [`${URI}&pin-source=geheim`, /pin-source does not name a file/],
    [`${URI}&pin-source=|geheim`, /pin-source does not name a file/],
    [`pkcs11:token=ca;object=a;type=public${MODULE}`, /type is not private/],
    [`pkcs11:token=ca;token=geheim;object=a${MODULE}`, /token is there twice/],
    [`pkcs11:token=ca;slot-id=1;object=a${MODULE}`, /something else/],
    [`pkcs11:token=c a;object=a${MODULE}`, /% and two hex digits/],
    [`pkcs11:token=%ff;object=a${MODULE}`, /not text/],
    [`pkcs11:token=a%00;object=a${MODULE}`, /not text/],
    [`pkcs11:token=ca;object=a${MODULE}?x=1`, /more than one/],
    [`pkcs11:token=${'a'.repeat(3_000)}${MODULE}`, /begin with pkcs11:/],
  ]
  for (const [uri, message] of refused) {
    t.throws(() => parseKeyUri(uri), { code: 'config_invalid', message }, uri.slice(0, 80))
    try {
      parseKeyUri(uri)
    } catch (error) {
      t.notMatch(String(error), /geheim/)
    }
  }
})

t.test('a URI that is written reads as the same, and any text reads or is refused', async (t) => {
  const name = fc
    .string({ minLength: 1, maxLength: 20, unit: 'binary' })
    .filter((text) => !text.includes('\0') && text.isWellFormed())
  const uri = fc.record({
    modulePath: name.map((text) => `/lib/${text}`),
    token: fc.option(name),
    serial: name,
    object: name,
    id: fc.option(fc.uint8Array({ minLength: 1, maxLength: 20 }).map((octets) => Buffer.from(octets))),
    pinFile: fc.option(name.map((text) => `/run/${text}`)),
  })
  fc.assert(fc.property(uri, (one) => t.same(parseKeyUri(formatKeyUri(one)), one)))
  const known = { code: 'config_invalid' }
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (text) => {
      try {
        parseKeyUri(`pkcs11:token=ca;${text}${MODULE}`)
        return true
      } catch (error) {
        return Object(error).code === known.code
      }
    }),
  )
})

t.test('a file that is no module is refused before it is code', async (t: Test) => {
  const path = join(t.testdir({ 'hsm.so': 'no module' }), 'hsm.so')
  t.throws(() => loadModule(path), { code: 'config_invalid', message: /Cannot load the PKCS#11 module/ })
  chmodSync(path, 0o666)
  t.throws(() => loadModule(path), { code: 'key_file_insecure', message: /chmod o-w/ })
  t.throws(() => loadModule(`${path}.gone`), { code: 'config_invalid', message: /does not exist/ })
  const { optionalDependencies } = JSON.parse(
    readFileSync(join(import.meta.dirname, '../../../package.json'), 'utf8'),
  )
  const source = readFileSync(join(import.meta.dirname, '../../../enrollment/ca/pkcs11/module.ts'), 'utf8')
  t.ok(
    source.includes(`koffi@${optionalDependencies.koffi}`),
    'the command that it names installs what is locked',
  )
})
